// Package demo is the main job of Tombolo as a story with proofs: two clouds,
// one global service, failover, on real processes, etcd, certificates, BPF and
// tunnels in network namespaces of this machine.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

// Options of a demo.
type Options struct {
	Clusters int // 2 or more
	Nodes    int // per cluster, 1 or more
	Keep     bool
	BinDir   string
	Out      io.Writer
	Colour   bool
	Logs     string // folder for logs and tables if something goes wrong; "" = none
}

// cloudNames in the order clusters get them; further ones are numbered.
var cloudNames = []string{"aws", "gcp", "azure", "edge"}

// Demo in progress.
type demo struct {
	*screen
	opts   Options
	lab    *lab.Lab
	claims []claim

	home, away *lab.Cluster // aws and gcp
	servers    map[string][]*lab.Pod
	clientPod  *lab.Pod
	client     *lab.Client
	capture    *lab.Capture
}

// mark is what the client says in every request: it must never be seen in clear
// between clusters.
const mark = "tombolo-demo-marker-7f3a9c"

// Run runs the demo. It returns an error if a step could not be carried out or
// a claim did not hold. Whatever happens, everything it made is removed, except
// with Keep.
func Run(ctx context.Context, o Options) (err error) {
	if o.Clusters < 2 || o.Clusters > 16 || o.Nodes < 1 || o.Nodes > 32 {
		return fmt.Errorf("the demo takes 2–16 clusters and 1–32 nodes in each, not %d and %d", o.Clusters, o.Nodes)
	}
	d := &demo{screen: &screen{out: o.Out, colour: o.Colour, begin: time.Now()}, opts: o, servers: map[string][]*lab.Pod{}}
	stepErr := d.steps(ctx)
	if stepErr != nil {
		d.line(d.paint("1;31", "STOPPED"), "%v", stepErr)
	}
	if stepErr != nil && o.Logs != "" && d.lab != nil {
		bundleCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		if err := d.lab.Bundle(bundleCtx, o.Logs); err != nil {
			d.event("collecting logs: %v", err)
		}
	}
	if o.Keep && d.lab != nil && stepErr == nil {
		d.howToLook()
	}
	if cleanErr := d.cleanUp(); cleanErr != nil {
		stepErr = errors.Join(stepErr, cleanErr)
	}
	if broken := d.table(d.claims); broken > 0 {
		return errors.Join(stepErr, fmt.Errorf("%d of %d claims did not hold", broken, len(d.claims)))
	}
	return stepErr
}

func (d *demo) steps(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.start, d.join, d.globalService, d.localFirst, d.localGone,
		d.powerLoss, d.powerBack, d.weights, d.partition,
		d.controlPlanesDead, d.agentsRestart, d.tunnelDead, d.nothingInClear, d.strangers,
	} {
		stepCtx, cancel := context.WithTimeoutCause(ctx, 60*time.Second, errors.New("nothing happened for 60 s"))
		err := step(stepCtx)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// assert records a claim and shows it at once.
func (d *demo) assert(what string, held bool, figure string, args ...any) {
	c := claim{what: what, held: held, figure: fmt.Sprintf(figure, args...)}
	d.claims = append(d.claims, c)
	d.screen.claim(c)
}

func (d *demo) cleanUp() error {
	if d.lab == nil {
		return nil
	}
	if d.opts.Keep {
		return d.lab.Close()
	}
	d.title("Clean-up", "After a demo, or Ctrl-C, or a crash of it, nothing is left on the machine.")
	begin := time.Now()
	err := d.lab.Close()
	left := d.lab.Leftovers()
	d.assert("nothing is left behind", err == nil && len(left) == 0, "%d namespaces, links, cgroups, pins, mounts or files left, after %.1f s", len(left), time.Since(begin).Seconds())
	for _, l := range left {
		d.event("left: %s", l)
	}
	return err
}

func (d *demo) howToLook() {
	n := d.home.Nodes[0]
	fmt.Fprintf(d.out, `
Everything stays up. To look around:
  export TOMBOLO_AGENT_SOCKET=%s
  export TOMBOLO_APISERVER_SOCKET=%s
  %s/tombolo status
  %s/tombolo service explain default/checkout
  %s/tombolo maps
  %s/tombolo mesh list
  ip netns exec %s bash          # a shell in the client pod's network
Manifests of %s: %s
To remove it: %s/tombolo demo --clean %s
`, n.Socket(), d.home.AdminSocket(), d.opts.BinDir, d.opts.BinDir, d.opts.BinDir, d.opts.BinDir,
		d.clientPod.Netns(), d.home.Name, d.home.Manifests, d.opts.BinDir, d.lab.ID)
}
