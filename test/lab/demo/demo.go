// Package demo is the main job of Tombolo as a story with proofs: two clouds,
// one global service, failover, on real processes, etcd, certificates, BPF and
// tunnels in network namespaces of this machine.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
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

// Check says what is wrong with the options, or nil.
func (o Options) Check() error {
	if o.Clusters < 2 || o.Clusters > 16 || o.Nodes < 1 || o.Nodes > 32 {
		return fmt.Errorf("the demo takes 2–16 clusters and 1–32 nodes in each, not %d and %d", o.Clusters, o.Nodes)
	}
	return nil
}

// cloudNames in the order clusters get them; further ones are numbered.
var cloudNames = []string{"aws", "gcp", "azure", "edge"}

// Demo in progress.
type demo struct {
	*screen
	opts   Options
	lab    *lab.Lab
	claims []claim
	kept   bool // it stays up

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
	if err := o.Check(); err != nil {
		return err
	}
	d := &demo{screen: &screen{out: o.Out, colour: o.Colour, begin: time.Now()}, opts: o, servers: map[string][]*lab.Pod{}}
	stepErr := d.steps(ctx)
	if stepErr != nil && ctx.Err() != nil {
		stepErr = fmt.Errorf("interrupted in step %d (%w); the steps after it were not run", d.step, context.Cause(ctx))
	}
	if stepErr != nil {
		d.line(d.paint("1;31", "STOPPED"), "%v", stepErr)
	}
	missed := slices.ContainsFunc(d.claims, func(c claim) bool { return !c.held })
	if (stepErr != nil || missed) && o.Logs != "" && d.lab != nil {
		bundleCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		if err := d.lab.Bundle(bundleCtx, o.Logs); err != nil {
			d.event("collecting logs: %v", err)
		}
	}
	d.kept = o.Keep && ctx.Err() == nil // who presses Ctrl-C wants it gone
	if cleanErr := d.cleanUp(); cleanErr != nil {
		stepErr = errors.Join(stepErr, cleanErr)
	}
	unheld := d.table(d.claims)
	if d.kept && d.lab != nil {
		d.howToLook()
	}
	if unheld > 0 {
		return errors.Join(stepErr, fmt.Errorf("%d of %d claims did not hold", unheld, len(d.claims)))
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
	if d.kept {
		return d.lab.Close()
	}
	d.title("Clean-up", "After a demo, or Ctrl-C, or a crash of it, nothing is left on the machine.")
	begin := time.Now()
	err := d.lab.Close()
	if d.opts.Keep {
		err = errors.Join(err, lab.Sweep(d.lab.ID, d.lab.Dir))
	}
	left := d.lab.Leftovers()
	d.assert("nothing is left behind", err == nil && len(left) == 0, "%d namespaces, links, cgroups, pins, mounts or files left, after %.1f s", len(left), time.Since(begin).Seconds())
	for _, l := range left {
		d.event("left: %s", l)
	}
	return err
}

// howToLook says what can be done with a demo that was kept: every line can be
// pasted into a shell.
func (d *demo) howToLook() {
	fmt.Fprintf(d.out, "\nEverything stays up. To look around, paste:\n")
	say := func(command, why string) { fmt.Fprintf(d.out, "  %-42s # %s\n", command, why) }
	fmt.Fprintf(d.out, "  export PATH=%s:$PATH\n", d.opts.BinDir)
	if d.home != nil {
		fmt.Fprintf(d.out, "  export TOMBOLO_AGENT_SOCKET=%s\n", d.home.Nodes[0].Socket())
		fmt.Fprintf(d.out, "  export TOMBOLO_APISERVER_SOCKET=%s\n", d.home.AdminSocket())
		say("tombolo status", "what node n1 of "+d.home.Name+" and its cluster know")
		say("tombolo mesh list", "the clusters "+d.home.Name+" is joined with")
		say("tombolo service explain default/checkout", "why traffic goes where it goes")
		say("tombolo maps services", "what the kernel holds")
		say("ls "+d.home.Manifests, "edit these: they are watched")
	}
	if d.clientPod != nil {
		fmt.Fprintf(d.out, "A shell in the client pod, and in it a client that asks the service again and again:\n  %s\n  %s\n",
			d.clientPod.ShellCommand("bash"), "tombolo lab-workload client -target "+net.JoinHostPort(serviceIP, "80")+" -interval 300ms")
	}
	fmt.Fprintln(d.out, "Logs are beside each socket. To remove it all:")
	fmt.Fprintf(d.out, "  tombolo demo --clean %s\n", d.lab.ID)
}
