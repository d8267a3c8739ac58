package linux

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func TestDeviceKey(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	open := func() (*Device, error) { return OpenDevice(dir, "none", 51820, nil) }
	d, err := open()
	if err != nil {
		t.Fatal(err)
	}
	key := d.PublicKey()
	d.Close()
	file := filepath.Join(dir, "wireguard.key")
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if d, err = open(); err != nil || d.PublicKey() != key {
		t.Fatalf("another key after a restart: %v", err)
	}
	d.Close()
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a damaged key: %v", err)
	}
}

// Two nodes joined by the tunnel, everything of ours in use: device, peers,
// routes, tunnel addresses, probes. Then the far node goes dark and comes back.
func TestTunnelAndProbes(t *testing.T) {
	var nodes [2]*ns
	var devices [2]*Device
	var peerTables [2]*peers
	for i := range nodes {
		nodes[i] = newNS(t)
	}
	nodes[0].ip("link", "add", "name", "under", "type", "veth", "peer", "name", "under", "netns", nodes[1].name)
	tunnels := [2][]netip.Addr{
		{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")},
		{netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("fd00:2::1")},
	}
	prefixes := [2][2]string{{"10.1.0.0/24", "fd00:1::/64"}, {"10.2.0.0/24", "fd00:2::/64"}}
	under := [2]string{"192.0.2.1", "192.0.2.2"}
	for i, n := range nodes {
		n.ip("addr", "add", under[i]+"/24", "dev", "under")
		n.ip("link", "set", "under", "up")
		dev := unique()
		n.startTunnel(dev)
		devices[i] = n.openDevice(dev, 51830)
		for range 2 { // idempotent
			if st, err := devices[i].Ensure(1420, nil); err != nil || !st.Present || st.IfIndex == 0 {
				t.Fatalf("%+v %v", st, err)
			}
		}
		if err := devices[i].SetTunnelAddresses(tunnels[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range nodes {
		far := 1 - i
		peerTables[i] = newPeers(devices[i].wg, devices[i].name)
		err := peerTables[i].Put(map[agent.PeerKey]agent.PeerRow{devices[far].PublicKey(): {
			Endpoint: netip.AddrPortFrom(netip.MustParseAddr(under[far]), 51830), Allowed: strings.Join(prefixes[far][:], ",")}})
		if err != nil {
			t.Fatal(err)
		}
		table := &routes{nl: devices[i].nl, device: devices[i].name}
		rows := map[agent.RouteKey]agent.RouteRow{}
		for f, p := range prefixes[far] {
			rows[agent.RouteKey{Prefix: prefix(p), Kind: agent.RouteBlackhole}] = agent.RouteRow{}
			rows[agent.RouteKey{Prefix: prefix(p), Kind: agent.RouteTunnel}] = agent.RouteRow{Source: agent.MakeAddr(tunnels[i][f]), MTU: 1420}
		}
		if err := table.Put(rows); err != nil {
			t.Fatal(err)
		}
	}
	var prober *Prober
	nodes[0].in(func() (err error) {
		prober, err = NewProber()
		return err
	})
	defer prober.Close()
	ctx := context.Background()
	for f := range 2 {
		// The first packets are lost while the sides settle who speaks first.
		begin := time.Now()
		rtt, err := prober.Probe(ctx, tunnels[0][f], tunnels[1][f], time.Second)
		for ; err != nil && time.Since(begin) < 20*time.Second; rtt, err = prober.Probe(ctx, tunnels[0][f], tunnels[1][f], time.Second) {
		}
		if err != nil || rtt <= 0 || rtt >= time.Second {
			t.Errorf("%v, round trip %v", err, rtt)
		}
		t.Logf("first answer after %v", time.Since(begin))
	}
	// The packets went through the tunnel, and the row of a peer in use reads as
	// it was written.
	if err := nodes[1].ping("10.1.0.1", "-M", "do", "-s", "1392"); err != nil {
		t.Error(err)
	}
	if have := dump(t, peerTables[0]); len(have) != 1 || have[devices[1].PublicKey()].Allowed != "10.2.0.0/24,fd00:2::/64" {
		t.Errorf("%v", have)
	}
	// The far node is dark.
	nodes[1].ip("link", "set", "under", "down")
	if _, err := prober.Probe(ctx, tunnels[0][0], tunnels[1][0], 100*time.Millisecond); err == nil {
		t.Error("a dark node answers")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := prober.Probe(cancelled, tunnels[0][0], tunnels[1][0], time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	nodes[1].ip("link", "set", "under", "up")
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := prober.Probe(ctx, tunnels[0][0], tunnels[1][0], 500*time.Millisecond)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	// Clean-up leaves nothing of ours.
	nodes[0].in(func() error { return Cleanup(devices[0].name, tunnels[0]) })
	if out := nodes[0].ip("route") + nodes[0].ip("-6", "route") + nodes[0].ip("addr", "show", "dev", "lo"); strings.Contains(out, "10.1.0.1") || strings.Contains(out, "proto 84") || strings.Contains(out, "fd00:1") {
		t.Errorf("left behind: %s", out)
	}
}

// What comes out of the tunnel is judged before anything can come out of it: the
// device is down until its guard is on, and goes down if that fails.
func TestDeviceIsDownWithoutGuard(t *testing.T) {
	n := newNS(t)
	dev := unique()
	n.startTunnel(dev)
	d := n.openDevice(dev, 51823)
	up := func() bool {
		return strings.Contains(n.ip("-o", "link", "show", dev), ",UP")
	}
	broken := errors.New("no program")
	if st, err := d.Ensure(1420, func(int) error { return broken }); !errors.Is(err, broken) || st.Present || up() {
		t.Errorf("guard failed: %+v %v, up %v", st, err, up())
	}
	if st, err := d.Ensure(1420, func(index int) error {
		if index == 0 || up() {
			t.Errorf("device %d is up before it is guarded", index)
		}
		return nil
	}); err != nil || !st.Present || !up() {
		t.Errorf("guarded: %+v %v, up %v", st, err, up())
	}
	if _, err := d.Ensure(1420, func(int) error { return broken }); !errors.Is(err, broken) || up() {
		t.Errorf("guard lost: %v, up %v", err, up())
	}
}

// More devices change than the kernel keeps for a slow listener: it is told
// that something changed, and goes on.
func TestWatchLinksOverflow(t *testing.T) {
	n := newNS(t)
	n.ip("link", "add", "name", "watched", "type", "veth", "peer", "name", "other")
	ctx, cancel := context.WithCancel(context.Background())
	calls, resume := make(chan struct{}, 1000), make(chan struct{})
	done := make(chan error, 1)
	go n.in(func() error {
		done <- WatchLinks(ctx, "watched", func() {
			calls <- struct{}{}
			<-resume
		})
		return nil
	})
	wait := func(what string) {
		t.Helper()
		select {
		case <-calls:
		case err := <-done:
			t.Fatalf("%s: it ended: %v", what, err)
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not told", what)
		}
	}
	for stop := time.Now().Add(10 * time.Second); len(calls) == 0 && time.Now().Before(stop); time.Sleep(10 * time.Millisecond) {
		n.ip("link", "set", "watched", "up")
		n.ip("link", "set", "watched", "down")
	}
	wait("first change")
	n.in(func() error { // it does not read: 64 changes wait in the channel, the rest in the kernel
		link, err := netlink.LinkByName("watched")
		for i := 0; i < 1000 && err == nil; i++ {
			err = netlink.LinkSetMTU(link, 1400+i%2)
		}
		return err
	})
	close(resume)
	quiet := 0
	for end := time.Now().Add(10 * time.Second); quiet < 10 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if quiet++; len(calls) > 0 {
			for len(calls) > 0 {
				<-calls
			}
			quiet = 0
		}
	}
	n.ip("link", "set", "watched", "up")
	wait("change after the overflow")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestUnderlay(t *testing.T) {
	n := newNS(t)
	n.ip("link", "add", "name", "under", "mtu", "1450", "type", "veth", "peer", "name", "peer")
	n.ip("addr", "add", "192.0.2.1/24", "dev", "under")
	n.ip("addr", "add", "fd01::1/64", "dev", "under", "nodad")
	n.ip("link", "set", "under", "up")
	n.ip("link", "set", "peer", "up")
	find := func(want ...string) (u Underlay, err error) {
		var addrs []netip.Addr
		for _, w := range want {
			addrs = append(addrs, netip.MustParseAddr(w))
		}
		inNetns(n.file, func() error { u, err = FindUnderlay(addrs, "none"); return nil })
		return u, err
	}
	u, err := find()
	if err != nil || len(u.Addresses) != 2 || u.Addresses[0].String() != "192.0.2.1" || u.MTU != 1450 || len(u.OnLink) != 2 || u.OnLink[0].String() != "192.0.2.0/24" {
		t.Errorf("%+v %v", u, err)
	}
	if u, err = find("fd01::1"); err != nil || len(u.Addresses) != 1 || u.OnLink[0].String() != "fd01::/64" {
		t.Errorf("%+v %v", u, err)
	}
	if _, err = find("192.0.2.9"); err == nil || !strings.Contains(err.Error(), "--underlay") {
		t.Error(err)
	}
	n.ip("link", "set", "under", "down")
	if _, err = find(); err == nil || !strings.Contains(err.Error(), "--underlay") {
		t.Error(err)
	}
}

// Reports reach the cluster, also when it was out of reach at first, and those
// of pods from before a restart; a removal is reported once.
func TestReports(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir := t.TempDir()
	node, one, two := newNS(t), newNS(t), newNS(t)
	p := openPods(t, node, dir, nil)
	for i, pod := range []*ns{one, two} {
		if _, err := p.Add(ctx, request(pod, []string{"uid-a", "uid-b"}[i], "c1")); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Del(ctx, request(two, "uid-b", "c1")); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p = openPods(t, node, dir, nil) // the agent restarted before it could say anything
	defer p.Close()
	got := make(chan EndpointReport, 16)
	failures := 2
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Report(ctx, func(_ context.Context, r EndpointReport) (clustermesh.Identity, error) {
			if failures > 0 {
				failures--
				return 0, errors.New("out of reach")
			}
			got <- r
			return clustermesh.MakeIdentity(7, 9), nil
		})
	}()
	seen := map[string]EndpointReport{}
	for len(seen) < 2 {
		r := <-got
		seen[r.UID] = r
	}
	if a, b := seen["uid-a"], seen["uid-b"]; !a.Ready || a.Remove || !b.Remove || len(b.Addresses) != 2 {
		t.Errorf("%+v", seen)
	}
	p.SetReady("uid-a", false)
	if r := <-got; r.UID != "uid-a" || r.Ready {
		t.Errorf("after a failed probe: %+v", r)
	}
	p.ReportAgain()
	if r := <-got; r.UID != "uid-a" || r.Ready {
		t.Errorf("once more: %+v", r)
	}
	cancel()
	<-done
	if list, _ := p.List(context.Background()); len(list) != 1 || list[0].Identity != clustermesh.MakeIdentity(7, 9) {
		t.Errorf("%+v", list)
	}
	st, _, err := readPodState(p.file(), p.log)
	if err != nil || len(st.Departed) != 0 || st.Pods[0].Identity != clustermesh.MakeIdentity(7, 9) {
		t.Errorf("%+v %v", st, err)
	}
}
