package linux

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent"
)

var chainedNetwork = NodeNetwork{
	PodPrefixes:     []netip.Prefix{netip.MustParsePrefix("10.255.0.1/32")},
	TunnelAddresses: []netip.Addr{netip.MustParseAddr("10.255.0.1")},
}

// openChained opens Pods for pods of another CNI; guarded collects devices.
func openChained(t *testing.T, node *ns, dir string, guard func(int) error) *Pods {
	t.Helper()
	var p *Pods
	node.in(func() (err error) {
		p, err = OpenPods(PodsConfig{StateDir: dir, Chained: true, Guard: guard})
		return err
	})
	t.Cleanup(p.Close)
	return p
}

// wire does what another CNI plugin does for a pod.
func wire(node, pod *ns, host, addr string) {
	node.t.Helper()
	node.ip("link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", pod.name)
	node.ip("link", "set", host, "up")
	pod.ip("link", "set", "eth0", "up")
	pod.ip("addr", "add", addr, "dev", "eth0")
}

func chainedRequest(pod *ns, uid, container, addr string, hosts ...string) agent.PodRequest {
	r := request(pod, uid, container)
	r.Chained, r.Addresses, r.HostIfs, r.Network = true, []netip.Addr{netip.MustParseAddr(addr)}, hosts, "other"
	return r
}

func uids(p *Pods) (out []string) {
	list, _ := p.List(context.Background())
	for _, l := range list {
		out = append(out, l.UID)
	}
	return out
}

// What another CNI made is taken over, found again, and left to it at the end.
func TestChainedPods(t *testing.T) {
	ctx := t.Context()
	node, one, two := newNS(t), newNS(t), newNS(t)
	dir, guarded := t.TempDir(), map[int]int{}
	guard := func(index int) error { guarded[index]++; return nil }
	p := openChained(t, node, dir, guard)
	wire(node, one, "other1", "10.7.0.5/24")
	wire(node, two, "other2", "10.7.0.6/24")
	a := chainedRequest(one, "uid-a", "c1", "10.7.0.5", "bridge0", "other1")
	b := chainedRequest(two, "uid-b", "c2", "10.7.0.6")
	if _, err := p.Add(ctx, a); err == nil || !strings.Contains(err.Error(), "no tunnel address yet") {
		t.Errorf("before the node is registered: %v", err)
	}
	if err := p.SetNetwork(chainedNetwork); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, r := range []agent.PodRequest{a, b} {
			got, err := p.Add(ctx, r)
			if err != nil || strings.Join(addresses(got), " ") != r.Addresses[0].String() {
				t.Fatalf("%+v %v", got, err)
			}
			if err := p.Check(ctx, r); err != nil {
				t.Error(err)
			}
		}
	}
	list, _ := p.List(ctx)
	mac := strings.Fields(one.ip("-o", "link", "show", "eth0"))
	if len(list) != 2 || len(guarded) != 2 || guarded[int(list[0].IfIndex)] != 2 || !strings.Contains(strings.Join(mac, " "), list[0].PodMAC.String()) {
		t.Fatalf("%+v, guarded %v, %v", list, guarded, mac)
	}
	// A fresh process, then one that has lost its memory, know the same and guard it.
	for _, lost := range []bool{false, true} {
		if lost {
			if err := os.Remove(filepath.Join(dir, "pods.json")); err != nil {
				t.Fatal(err)
			}
		}
		clear(guarded)
		again := openChained(t, node, dir, guard)
		if err := again.Start(); err != nil {
			t.Fatal(err)
		}
		if have, _ := again.List(ctx); len(have) != 2 || have[0].IfIndex != list[0].IfIndex || have[0].PodMAC != list[0].PodMAC || have[0].HostMAC != list[0].HostMAC || len(guarded) != 2 {
			t.Errorf("lost %v: %+v, guarded %v", lost, have, guarded)
		}
		p = again
	}
	if err := p.SetNetwork(chainedNetwork); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add(ctx, a); err != nil { // the runtime asks again
		t.Fatal(err)
	}
	// CHECK sees what is missing.
	one.ip("addr", "del", "10.7.0.5/24", "dev", "eth0")
	if err := p.Check(ctx, a); err == nil || !strings.Contains(err.Error(), "10.7.0.5 is not on eth0") {
		t.Errorf("%v", err)
	}
	// DEL leaves the device, without the mark.
	for range 2 {
		if err := p.Del(ctx, a); err != nil {
			t.Fatal(err)
		}
	}
	if out := node.ip("link", "show", "other1"); strings.Contains(out, "tombolo") || len(uids(p)) != 1 {
		t.Errorf("%s, pods %v", out, uids(p))
	}
	// GC of that network, of pods whose sandbox is known (the memory of b's was lost);
	// then a device that goes without a DEL.
	for _, r := range []agent.PodRequest{a, b} {
		if _, err := p.Add(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Collect(ctx, agent.CollectRequest{Network: "other", Valid: []agent.Attachment{{ContainerID: "c1", IfName: "eth0"}}}); err != nil || strings.Join(uids(p), " ") != "uid-a" {
		t.Errorf("%v, pods %v", err, uids(p))
	}
	node.ip("link", "del", "other1")
	if err := p.Sweep(nil); err != nil || len(uids(p)) != 0 || len(p.pods) != 0 || len(p.freed) != 0 {
		t.Errorf("%v, pods %v, freed %v: another CNI's address is not kept", err, p.pods, p.freed)
	}
}

// After a reboot there are no devices, and no addresses are kept for the pods.
func TestChainedReboot(t *testing.T) {
	node, one := newNS(t), newNS(t)
	dir := t.TempDir()
	p := openChained(t, node, dir, nil)
	wire(node, one, "other1", "10.7.0.5/24")
	if err := p.SetNetwork(chainedNetwork); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add(t.Context(), chainedRequest(one, "uid-a", "c1", "10.7.0.5")); err != nil {
		t.Fatal(err)
	}
	node.ip("link", "del", "other1")
	p = openChained(t, node, dir, nil)
	if reports := p.reports(); len(p.pods) != 0 || len(reports) != 1 || !reports[0].Remove {
		t.Errorf("pods %v, reports %+v", p.pods, reports)
	}
}

// An address that the other CNI gives again is its new pod's.
func TestChainedAddressAgain(t *testing.T) {
	node, one, two := newNS(t), newNS(t), newNS(t)
	p := openChained(t, node, t.TempDir(), nil)
	wire(node, one, "other1", "10.7.0.5/24")
	wire(node, two, "other2", "10.7.0.5/24")
	if err := p.SetNetwork(chainedNetwork); err != nil {
		t.Fatal(err)
	}
	for _, r := range []agent.PodRequest{chainedRequest(one, "uid-a", "c1", "10.7.0.5"), chainedRequest(two, "uid-b", "c2", "10.7.0.5")} {
		if _, err := p.Add(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(uids(p), " "); got != "uid-b" {
		t.Errorf("pods %s", got)
	}
}

// What cannot be taken over is refused with a reason, and nothing is kept of it.
func TestChainedRefused(t *testing.T) {
	node, one, two, three, elsewhere := newNS(t), newNS(t), newNS(t), newNS(t), newNS(t)
	wire(node, one, "other1", "10.7.0.5/24")
	node.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
	node.ip("link", "add", "link", "up0", "name", "eth0", "type", "macvlan")
	node.ip("link", "set", "eth0", "netns", two.name)
	wire(elsewhere, three, "other3", "10.7.0.7/24")
	main := openPods(t, node, t.TempDir(), nil)
	defer main.Close()
	p := openChained(t, node, t.TempDir(), nil)
	if err := p.SetNetwork(chainedNetwork); err != nil {
		t.Fatal(err)
	}
	broken := openChained(t, node, t.TempDir(), func(int) error { return errors.New("no room") })
	if err := broken.SetNetwork(chainedNetwork); err != nil {
		t.Fatal(err)
	}
	wrong := openChained(t, node, t.TempDir(), nil)
	if err := wrong.SetNetwork(testNetwork); err != nil {
		t.Fatal(err)
	}
	bare := chainedRequest(one, "u", "c", "10.7.0.5")
	bare.Addresses = nil
	for name, c := range map[string]struct {
		pods *Pods
		r    agent.PodRequest
		want string
	}{
		"agent of main mode":   {main, chainedRequest(one, "u", "c", "10.7.0.5"), "start it with --cni-mode=chained"},
		"plugin not chained":   {p, request(one, "u", "c"), "the plugin is not chained"},
		"no addresses":         {p, bare, "gave the pod 0 addresses"},
		"macvlan":              {p, chainedRequest(two, "u", "c", "10.7.0.6"), "is a macvlan: Tombolo needs a veth"},
		"other end elsewhere":  {p, chainedRequest(three, "u", "c", "10.7.0.7"), "the other end of the pod's eth0"},
		"another device named": {p, chainedRequest(one, "u", "c", "10.7.0.5", "cni0"), "the other plugin's result names cni0"},
		"not guarded":          {broken, chainedRequest(one, "u", "c", "10.7.0.5"), "no room"},
		"cluster of main mode": {wrong, chainedRequest(one, "u", "c", "10.7.0.5"), "--tunnel-prefix"},
	} {
		if _, err := c.pods.Add(t.Context(), c.r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if len(c.pods.pods) != 0 {
			t.Errorf("%s: kept %v", name, c.pods.pods)
		}
	}
	// An agent of main mode, in a chained cluster.
	if err := main.SetNetwork(chainedNetwork); err != nil {
		t.Fatal(err)
	}
	if err := main.Ready(); err == nil || !strings.Contains(err.Error(), "--cni-mode=chained") {
		t.Errorf("%v", err)
	}
}

// Cleanup leaves the other CNI's devices, as they were.
func TestChainedCleanup(t *testing.T) {
	node, one := newNS(t), newNS(t)
	p := openChained(t, node, t.TempDir(), nil)
	wire(node, one, "other1", "10.7.0.5/24")
	if err := p.SetNetwork(chainedNetwork); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add(t.Context(), chainedRequest(one, "uid-a", "c1", "10.7.0.5")); err != nil {
		t.Fatal(err)
	}
	node.in(func() error { return Cleanup("none", chainedNetwork.TunnelAddresses) })
	if out := node.ip("link", "show", "other1"); strings.Contains(out, "alias") {
		t.Error(out)
	}
}

// The host's addresses are those that nobody else says of it; the underlay's are on the
// links of default routes, whatever links another CNI has.
func TestHostAddresses(t *testing.T) {
	node, one, far := newNS(t), newNS(t), newNS(t)
	wire(node, one, "other1", "10.7.0.5/24")
	node.ip("addr", "add", "10.7.0.1/32", "dev", "other1")
	node.ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", far.name)
	node.ip("link", "set", "up0", "up")
	node.ip("addr", "add", "192.0.2.7/24", "dev", "up0")
	node.in(func() error {
		if _, err := DefaultAddresses(); err == nil || !strings.Contains(err.Error(), "--underlay") {
			t.Errorf("no default route: %v", err)
		}
		return nil
	})
	node.ip("route", "add", "default", "via", "192.0.2.1")
	node.in(func() error {
		underlay, err := DefaultAddresses()
		if err != nil || len(underlay) != 1 || underlay[0] != netip.MustParseAddr("192.0.2.7") {
			t.Errorf("underlay %v, %v", underlay, err)
		}
		host, err := HostAddresses(underlay)
		if err != nil || len(host) != 1 || host[0] != netip.MustParseAddr("10.7.0.1") {
			t.Errorf("host %v, %v", host, err)
		}
		return err
	})
}
