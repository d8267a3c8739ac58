package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/cni"
	"github.com/tombolo-mesh/tombolo/agent/gossip"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/agent/register"
	"github.com/tombolo-mesh/tombolo/bpf"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// node is the running agent with its edges.
type node struct {
	o         options
	log       *slog.Logger
	underlay  linux.Underlay
	device    *linux.Device
	objects   *bpf.Objects
	sweeper   *linux.Sweeper
	pods      *linux.Pods
	client    *register.Client
	gossip    *gossip.Gossip // nil = not wanted
	api       api
	installer *cni.Installer // nil = the CNI plugin is not to be installed

	mu        sync.Mutex
	agent     *agent.Agent // nil until the node knows its place
	facts     register.Facts
	state     linux.DeviceState
	kick      chan struct{} // the tunnel device may have changed
	uplinkErr error         // the uplinks' programs; nil = attached
	xdpErr    error         // the same of XDP, where it was asked for
	doubt     bool          // its program could not be checked last time; see guard
}

// run starts in the order in which one thing needs another: what the disk holds,
// the kernel's programs and maps, the agent itself (with its snapshot), and only
// then the servers. With facts on disk, no server is needed for any of it.
func run(ctx context.Context, o options, log *slog.Logger) error {
	lock, err := lockState(o.stateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	n := &node{o: o, log: log, kick: make(chan struct{}, 1)}
	if n.installer, err = o.cni.installer(o, log); err != nil {
		return err
	}
	n.api.set(starting(nil, func() string { return "it loads its programs" }))
	listener, err := listen(o.socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: &n.api, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	go server.Serve(listener)
	defer os.Remove(o.socket)
	defer server.Close()
	if o.metrics != "" {
		stop, err := n.serveMetrics(ctx)
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := n.open(); err != nil {
		return err
	}
	defer n.close()
	facts, err := n.register(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return n.serve(ctx, facts)
}

// open takes what the node has: addresses, keys, pods, programs.
func (n *node) open() error {
	want, err := parseAddrs(n.o.underlay)
	if err != nil {
		return err
	}
	if n.o.cni.chained() && len(want) == 0 {
		if want, err = linux.DefaultAddresses(); err != nil {
			return err
		}
	}
	if n.underlay, err = linux.FindUnderlay(want, n.o.device); err != nil {
		return err
	}
	if n.device, err = linux.OpenDevice(n.o.stateDir, n.o.device, n.o.port, n.log); err != nil {
		return err
	}
	n.pods, err = linux.OpenPods(linux.PodsConfig{StateDir: n.o.stateDir, Chained: n.o.cni.chained(), Log: n.log, Changed: func(pods []agent.LocalPod) {
		if a := n.running(); a != nil {
			n.tellHostAddresses(a)
			a.SetPods(pods)
		}
	}, Guard: func(ifindex int) error { return n.objects.AttachPod(ifindex) }})
	if err != nil {
		return err
	}
	n.client, err = register.Open(register.Config{StateDir: n.o.stateDir, Node: n.o.node, Token: n.token(), MeshConfig: n.o.meshConfig, AccountToken: n.accountToken(), Changed: n.changed, Back: n.pods.ReportAgain, Log: n.log})
	if err != nil {
		return err
	}
	n.client.Update(register.Self{
		UnderlayAddresses: n.underlay.Addresses, WireGuardKey: n.device.PublicKey(),
		WireGuardEndpoint: n.o.reachedAt(n.underlay.Addresses[0]), WireGuardPort: uint16(n.o.port),
	})
	n.objects, err = bpf.Load(bpf.Options{PinDir: n.o.bpffs, CgroupPath: n.o.cgroup, Sizes: n.o.sizes, Log: n.log})
	if err != nil {
		return err
	}
	n.sweeper = linux.NewSweeper(n.objects.Maps, linux.DefaultFlowTimeouts)
	return nil
}

func (n *node) close() {
	if n.objects != nil {
		n.objects.Close()
	}
	if n.client != nil {
		n.client.Close()
	}
	if n.pods != nil {
		n.pods.Close()
	}
	if n.device != nil {
		n.device.Close()
	}
}

// accountToken reads the pod's service-account token; nil = there is none.
func (n *node) accountToken() func() (string, error) {
	if n.o.accountToken == "" {
		return nil
	}
	return func() (string, error) {
		text, err := os.ReadFile(n.o.accountToken)
		return string(text), err
	}
}

func (n *node) token() func() (string, error) {
	if n.o.tokenFile == "" {
		return nil
	}
	return func() (string, error) {
		text, err := os.ReadFile(n.o.tokenFile)
		return string(text), err
	}
}

// register returns the facts on disk, or waits for the first registration.
func (n *node) register(ctx context.Context) (register.Facts, error) {
	if f, ok := n.client.Facts(); ok {
		return f, nil
	}
	n.api.set(starting(n.pods, func() string {
		if err := n.client.Problem(); err != nil {
			return "the node is not registered: " + err.Error()
		}
		return "the node is being registered"
	}))
	for wait := 250 * time.Millisecond; ; wait = min(wait*2, 10*time.Second) {
		err := n.client.Register(ctx)
		if err == nil {
			f, _ := n.client.Facts()
			return f, nil
		}
		if ctx.Err() != nil {
			return register.Facts{}, ctx.Err()
		}
		n.log.Error("node not registered", "err", err, "retry", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return register.Facts{}, ctx.Err()
		case <-timer.C:
		}
	}
}

// running is the agent, once there is one.
func (n *node) running() *agent.Agent {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.agent
}

// changed takes over new facts while the agent runs.
func (n *node) changed(f register.Facts) {
	if n.running() == nil {
		return // the start does it
	}
	if err := n.settle(f); err != nil {
		n.log.Error("new facts about this node cannot be carried out", "err", err)
	}
}

// settle makes the node's own addresses and pod prefixes as the facts say.
func (n *node) settle(f register.Facts) error {
	n.mu.Lock()
	old := n.facts.TunnelAddresses
	n.facts = f
	n.mu.Unlock()
	if n.gossip != nil {
		if err := n.gossip.SetKeys(f.GossipKeys); err != nil {
			return err
		}
	}
	if err := n.device.SetTunnelAddresses(f.TunnelAddresses, old); err != nil {
		return err
	}
	return n.pods.SetNetwork(linux.NodeNetwork{PodPrefixes: f.PodPrefixes, TunnelAddresses: f.TunnelAddresses, PodMTU: linux.PodMTU(n.underlay.MTU)})
}

// serve runs everything until ctx ends. Nothing is taken away at the end.
func (n *node) serve(ctx context.Context, facts register.Facts) error {
	if n.o.gossipPort > 0 {
		n.gossip = gossip.New(gossip.Config{Cluster: facts.Cluster, Node: n.o.node, Address: n.underlay.Addresses[0], Port: n.o.gossipPort, Log: n.log})
	}
	if err := n.settle(facts); err != nil {
		return err
	}
	prober, err := linux.NewProber()
	if err != nil {
		return err
	}
	defer prober.Close()
	cfg := agent.Config{
		Cluster: facts.Cluster, ClusterID: facts.ClusterID, Node: n.o.node,
		OnLink: n.underlay.OnLink, UnderlayMTU: uint16(min(n.underlay.MTU, 65535)),
		SnapshotDir: filepath.Join(n.o.stateDir, "snapshot"),
		Connector:   register.Connector{Client: n.client}, Prober: prober, Pods: n.pods,
		SlowStart: n.o.slowStart, OwnNode: n.ownNode, Counters: n.objects.Counters, Details: n.details, Conditions: n.conditions, Log: n.log,
		MaglevRows: int(n.objects.Maglev.MaxEntries()),
	}
	if n.gossip != nil {
		cfg.Gossip = n.gossip
	}
	if err := n.o.dataplane(&cfg); err != nil {
		return err
	}
	if err := checkNodePorts(n.underlay.Addresses, cfg.NodePortAddresses); err != nil {
		return err
	}
	answers := linux.NewHealthPorts(func() []netip.Addr { return nodePortAddresses(n.underlay.Addresses, cfg.NodePortAddresses) },
		func() bool { a := n.running(); return a != nil && a.Ready() }, n.log)
	cfg.Resets = linux.NewResets(n.pods, n.objects.Maps)
	if !cfg.Chained { // else kube-proxy answers there
		cfg.HealthPorts = answers
	}
	a, err := agent.New(cfg, linux.NewTables(n.objects.Maps, n.device))
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.agent = a
	n.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	task := func(name string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	n.attachUplinks() // the guards are there before the first tables are written
	n.tunnel()        // and so is the device, if somebody holds it
	task("agent", func() error { return a.Run(ctx) })
	if n.gossip != nil {
		task("gossip", func() error { return n.gossip.Run(ctx) })
	}
	if err := n.pods.Start(); err != nil {
		n.log.Error("a pod keeps the program that it had", "err", err)
	}
	n.api.set(a.Handler())
	task("tunnel device", func() error { n.watchTunnel(ctx); return nil })
	task("uplinks", func() error { n.watchUplinks(ctx); return nil })
	task("links", func() error { return linux.WatchLinks(ctx, n.o.device, n.kicked) })
	task("routes", func() error { return linux.WatchRoutes(ctx, func() { a.Notify(agent.TableRoutes) }) })
	task("events", func() error {
		if err := linux.ReadEvents(ctx, n.objects.Events, a.Observe); err != nil {
			n.log.Error("'tombolo flows' shows nothing new: events are not read any more", "err", err)
		}
		return nil // packets pass as they did: a node does not stop for who watches it
	})
	task("registration", func() error { return n.client.Run(ctx) })
	task("pods", func() error { n.watchPods(ctx, a); return nil })
	if n.installer != nil {
		n.installer.Ready = a.PodsReady
		task("CNI plugin", func() error { return n.installer.Run(ctx) })
	}
	task("pods that are gone", func() error { n.sweepPods(ctx, a); return nil })
	task("health check ports", func() error { return answers.Run(ctx) })
	task("flows", func() error { return n.sweeper.Run(ctx) })
	n.log.Info("agent started", "cluster", facts.Cluster, "node", n.o.node, "number", facts.Number, "prefixes", facts.PodPrefixes)
	<-ctx.Done()
	wg.Wait()
	n.log.Info("agent stops; the kernel keeps what it has")
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// ownNode hears what the cluster's record of this node says: if it lacks our
// key, the cluster has lost the registration.
func (n *node) ownNode(rec clustermesh.Node) {
	n.mu.Lock()
	f := n.facts
	n.mu.Unlock()
	if rec.WireGuardKey != n.device.PublicKey() || rec.Number != f.Number {
		n.client.Nudge()
		n.pods.ReportAgain()
	}
}

// details are the lines of the status that only the edges know.
func (n *node) details() map[string]string {
	n.mu.Lock()
	st, uplinkErr, xdpErr := n.state, n.uplinkErr, n.xdpErr
	n.mu.Unlock()
	d := map[string]string{
		"wireguard":    st.Detail,
		"underlay":     fmt.Sprintf("%v, MTU %d", n.underlay.Addresses, n.underlay.MTU),
		"registration": "registered",
		"cgroup":       n.objects.Features().Cgroup,
		"no backend":   "connect() fails with " + n.objects.Features().Refusal,
		"flows":        flowsDetail(n.sweeper.Count()),
	}
	d["cni"] = n.cniDetail()
	d["uplinks"] = "guarded"
	if uplinkErr != nil {
		d["uplinks"] = "NOT guarded: " + uplinkErr.Error()
	}
	if xdpErr != nil {
		d["xdp"] = "not attached: " + xdpErr.Error()
	} else if len(n.o.xdpModes) > 0 {
		d["xdp"] = "attached"
	}
	if err := n.client.Problem(); err != nil {
		d["registration"] = "not renewed: " + err.Error()
	}
	if leaf := n.client.Leaf(); leaf != nil {
		d["certificate"] = "expires " + leaf.Expires().UTC().Format(time.RFC3339)
	}
	return d
}

// conditions are problems that only the edges know of.
func (n *node) conditions() (out []clustermesh.Problem) {
	if p, ok := n.sweeper.Count().Problem(); !ok {
		out = append(out, p)
	}
	if n.installer != nil {
		out = append(out, n.installer.Problems()...)
	}
	if p, is := n.gossipProblem(); is {
		out = append(out, p)
	}
	n.mu.Lock()
	err := n.uplinkErr
	n.mu.Unlock()
	if err != nil {
		out = append(out, clustermesh.Problem{
			What: "an uplink of this node has no program: node ports and masquerading do not work there, and nothing guards what leaves by it",
			Why:  err.Error(), Fix: "check --uplink and --underlay, and the kernel's log; it is tried again by itself",
		})
	}
	return out
}

// gossipProblem is why this node does not gossip.
func (n *node) gossipProblem() (clustermesh.Problem, bool) {
	if n.gossip == nil || n.gossip.Problem() == nil {
		return clustermesh.Problem{}, false
	}
	return clustermesh.Problem{
		What: "this agent does not gossip with the others of its cluster: it judges nodes by its own probes alone, and probes them all",
		Why:  n.gossip.Problem().Error(), Fix: "free UDP and TCP port " + strconv.Itoa(n.o.gossipPort) + " of " + n.underlay.Addresses[0].String() + ", choose another on all nodes with --gossip-port, or turn gossip off with 0; where the key is missing, see that the mesh API server can be reached and is not older than this agent",
	}, true
}

// flowsDetail says how full conntrack is: when it is, flows that are alive are
// pushed out.
func flowsDetail(c linux.FlowCount) string {
	return fmt.Sprintf("%d of %d rows in use, %d timed out", c.Rows, c.Size, c.Expired)
}
