package linux

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

var testNetwork = NodeNetwork{
	PodPrefixes:     []netip.Prefix{netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("fd00:77:1::/64")},
	TunnelAddresses: []netip.Addr{netip.MustParseAddr("10.77.1.1"), netip.MustParseAddr("fd00:77:1::1")},
	PodMTU:          1420,
}

// openPods opens Pods in the node's namespace, with tunnel addresses on lo.
func openPods(t *testing.T, node *ns, dir string, now func() time.Time) *Pods {
	t.Helper()
	d := node.openDevice(unique(), 51820)
	if err := d.SetTunnelAddresses(testNetwork.TunnelAddresses, nil); err != nil {
		t.Fatal(err)
	}
	var p *Pods
	node.in(func() (err error) {
		p, err = OpenPods(PodsConfig{StateDir: dir, Now: now})
		return err
	})
	if err := p.SetNetwork(testNetwork); err != nil {
		t.Fatal(err)
	}
	return p
}

func request(pod *ns, uid, container string) agent.PodRequest {
	return agent.PodRequest{ContainerID: container, Netns: pod.path(), IfName: "eth0", Namespace: "default", Name: "pod-" + uid, UID: uid}
}

func addresses(r agent.PodResult) (out []string) {
	for _, ip := range r.IPs {
		out = append(out, ip.Address.Addr().String())
	}
	return out
}

func TestPodsReachOneAnother(t *testing.T) {
	ctx := context.Background()
	node, one, two := newNS(t), newNS(t), newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	a, err := p.Add(ctx, request(one, "uid-a", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Add(ctx, request(two, "uid-b", "c2"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(addresses(a), " "); got != "10.77.1.2 fd00:77:1::2" {
		t.Errorf("first pod got %s", got)
	}
	if a.MTU != 1420 || a.HostIfName == "" || a.IPs[0].Gateway != gateway4 || a.IPs[1].Gateway != gateway6 {
		t.Errorf("result %+v", a)
	}
	for _, addr := range addresses(b) {
		if err := one.ping(addr); err != nil {
			t.Error(err)
		}
	}
	for _, addr := range append(addresses(a), "10.77.1.1") {
		if err := two.ping(addr); err != nil {
			t.Error(err)
		}
	}
	if err := node.ping(addresses(a)[1]); err != nil {
		t.Error(err)
	}
	// Not larger than fits the tunnel.
	if err := one.ping("10.77.1.1", "-M", "do", "-s", "1393"); err == nil {
		t.Error("a packet of 1421 bytes left the pod")
	}
	// Repeated ADD: the same answer, and nothing was made anew.
	index := p.local()[0].IfIndex
	again, err := p.Add(ctx, request(one, "uid-a", "c1"))
	if err != nil || strings.Join(addresses(again), " ") != strings.Join(addresses(a), " ") || p.local()[0].IfIndex != index {
		t.Errorf("repeated ADD: %+v %v, index %d then %d", again, err, index, p.local()[0].IfIndex)
	}
	if err := p.Check(ctx, request(one, "uid-a", "c1")); err != nil {
		t.Error(err)
	}
	if err := p.Del(ctx, request(one, "uid-a", "c1")); err != nil {
		t.Fatal(err)
	}
	if err := two.ping(addresses(a)[0]); err == nil {
		t.Error("a deleted pod answers")
	}
	if err := p.Del(ctx, request(one, "uid-a", "c1")); err != nil {
		t.Errorf("repeated DEL: %v", err)
	}
	if out := one.ip("link", "show"); strings.Contains(out, "eth0") {
		t.Errorf("eth0 is left in the pod: %s", out)
	}
}

// A pod cannot speak with an address that is not its own.
func TestPodSpoofing(t *testing.T) {
	ctx := context.Background()
	node, one, two := newNS(t), newNS(t), newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	if _, err := p.Add(ctx, request(one, "uid-a", "c1")); err != nil {
		t.Fatal(err)
	}
	b, err := p.Add(ctx, request(two, "uid-b", "c2"))
	if err != nil {
		t.Fatal(err)
	}
	one.ip("addr", "add", "10.77.1.99/32", "dev", "eth0")
	if err := one.ping(addresses(b)[0], "-I", "10.77.1.99"); err == nil {
		t.Error("a spoofed source was answered")
	}
	if n := dropped(node); n == 0 {
		t.Error("the reverse path filter dropped nothing: the packet went through")
	}
}

// dropped is how many packets the namespace's reverse path filter dropped.
func dropped(n *ns) int {
	lines := strings.Split(command(n.t, "ip", "netns", "exec", n.name, "cat", "/proc/net/netstat"), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	for i, name := range names {
		if name == "IPReversePathFilter" {
			count, _ := strconv.Atoi(values[i])
			return count
		}
	}
	return 0
}

func TestPodRestartAndReboot(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	node, one := newNS(t), newNS(t)
	p := openPods(t, node, dir, nil)
	first, err := p.Add(ctx, request(one, "uid-a", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()

	// The agent restarts: the pod is connected as before.
	p = openPods(t, node, dir, nil)
	if list, _ := p.List(ctx); len(list) != 1 || list[0].UID != "uid-a" {
		t.Fatalf("after a restart: %+v", list)
	}
	if err := p.Check(ctx, request(one, "uid-a", "c1")); err != nil {
		t.Fatal(err)
	}
	p.Close()

	// The node reboots: namespaces are gone, the disk stays.
	rebooted, sandbox, other := newNS(t), newNS(t), newNS(t)
	p = openPods(t, rebooted, dir, nil)
	defer p.Close()
	if list, _ := p.List(ctx); len(list) != 0 {
		t.Fatalf("after a reboot: %+v", list)
	}
	if err := p.Check(ctx, request(sandbox, "uid-a", "c1")); err == nil {
		t.Error("CHECK of a pod without a link passed")
	}
	// Another pod comes first, and does not get the address.
	stranger, err := p.Add(ctx, request(other, "uid-b", "c9"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.Add(ctx, request(sandbox, "uid-a", "c2"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(addresses(again), " "), strings.Join(addresses(first), " "); got != want || got == strings.Join(addresses(stranger), " ") {
		t.Errorf("after a reboot the pod got %s, had %s; the other got %v", got, want, addresses(stranger))
	}
	// The late DEL of the old sandbox changes nothing.
	if err := p.Del(ctx, agent.PodRequest{ContainerID: "c1", UID: "uid-a", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(ctx, request(sandbox, "uid-a", "c2")); err != nil {
		t.Errorf("a former sandbox's DEL took the pod down: %v", err)
	}
	if err := other.ping(addresses(again)[0]); err != nil {
		t.Error(err)
	}
}

func TestPodStateFileLost(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	node, one, two := newNS(t), newNS(t), newNS(t)
	p := openPods(t, node, dir, nil)
	first, err := p.Add(ctx, request(one, "uid-a", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	file := filepath.Join(dir, "pods.json")
	if err := os.WriteFile(file, []byte(`{"version":1,"pods":[{"uid":`), 0o600); err != nil {
		t.Fatal(err)
	}
	p = openPods(t, node, dir, nil)
	defer p.Close()
	if _, err := os.Stat(file + ".bad"); err != nil {
		t.Errorf("the bad file was not set aside: %v", err)
	}
	second, err := p.Add(ctx, request(two, "uid-b", "c2"))
	if err != nil {
		t.Fatal(err)
	}
	if addresses(second)[0] == addresses(first)[0] {
		t.Errorf("%s was given out twice", addresses(first)[0])
	}
	again, err := p.Add(ctx, request(one, "uid-a", "c1"))
	if err != nil || addresses(again)[0] != addresses(first)[0] {
		t.Errorf("the pod got %v (%v), had %v", addresses(again), err, addresses(first))
	}
}

func TestPodCheckSeesDamage(t *testing.T) {
	ctx := context.Background()
	node := newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	for _, damage := range []struct {
		name string
		do   func(pod *ns, host string)
		want string
	}{
		{"none", func(*ns, string) {}, ""},
		{"address", func(pod *ns, _ string) { pod.ip("addr", "flush", "dev", "eth0", "scope", "global") }, "is not on eth0"},
		{"default route", func(pod *ns, _ string) { pod.ip("route", "del", "default") }, "no route"},
		{"host route", func(_ *ns, host string) { node.ip("route", "flush", "dev", host) }, "no route"},
		{"link", func(pod *ns, _ string) { pod.ip("link", "del", "eth0") }, "not found"},
		{"MTU", func(_ *ns, host string) { node.ip("link", "set", host, "mtu", "1300") }, "MTU 1300"},
		{"neighbour", func(pod *ns, _ string) { pod.ip("neigh", "del", "169.254.1.1", "dev", "eth0") }, "no permanent neighbour"},
	} {
		t.Run(damage.name, func(t *testing.T) {
			pod := newNS(t)
			req := request(pod, "uid-"+strings.ReplaceAll(damage.name, " ", "-"), "c-"+damage.name)
			got, err := p.Add(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			damage.do(pod, got.HostIfName)
			err = p.Check(ctx, req)
			if damage.want == "" && err != nil || damage.want != "" && (err == nil || !strings.Contains(err.Error(), damage.want)) {
				t.Errorf("CHECK said %v, want %q", err, damage.want)
			}
			// ADD repairs what CHECK finds.
			if _, err := p.Add(ctx, req); err != nil {
				t.Fatal(err)
			}
			if err := p.Check(ctx, req); err != nil {
				t.Errorf("after ADD again: %v", err)
			}
			if err := pod.ping("fd00:77:1::1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// DEL of a pod whose namespace is gone frees its addresses all the same.
func TestPodDelWithoutNamespace(t *testing.T) {
	ctx := context.Background()
	node, pod := newNS(t), newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	if _, err := p.Add(ctx, request(pod, "uid-a", "c1")); err != nil {
		t.Fatal(err)
	}
	command(t, "ip", "netns", "del", pod.name)
	if err := p.Del(ctx, agent.PodRequest{ContainerID: "c1", UID: "uid-a"}); err != nil {
		t.Fatal(err)
	}
	if list, _ := p.List(ctx); len(list) != 0 {
		t.Errorf("left: %+v", list)
	}
}

// A crash came after the veth was made and before it was marked: the next ADD
// knows it by its address; one of somebody else's making stays.
func TestPodVethWithoutMark(t *testing.T) {
	ctx := context.Background()
	node, one, two := newNS(t), newNS(t), newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	link := newPodLink("uid-a", "eth0", nil, 1420)
	node.ip("link", "add", "name", link.HostIf, "address", link.HostMAC.String(), "type", "veth", "peer", "name", "eth0", "netns", one.name)
	if _, err := p.Add(ctx, request(one, "uid-a", "c1")); err != nil {
		t.Errorf("after a crash: %v", err)
	}
	node.ip("link", "add", "name", hostIfName("uid-b"), "type", "veth", "peer", "name", "eth0", "netns", two.name)
	if _, err := p.Add(ctx, request(two, "uid-b", "c2")); err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("a foreign device: %v", err)
	}
	if err := p.Del(ctx, request(two, "uid-b", "c2")); err != nil {
		t.Error(err)
	}
	node.ip("link", "show", "dev", hostIfName("uid-b"))
}

func TestPodRefusals(t *testing.T) {
	ctx := context.Background()
	node, pod := newNS(t), newNS(t)
	var p *Pods
	node.in(func() (err error) {
		p, err = OpenPods(PodsConfig{StateDir: t.TempDir()})
		return err
	})
	defer p.Close()
	for _, c := range []struct {
		change func(*agent.PodRequest)
		want   string
	}{
		{func(r *agent.PodRequest) {}, "no pod prefixes yet"},
		{func(r *agent.PodRequest) { r.UID = "a b" }, "pod UID"},
		{func(r *agent.PodRequest) { r.Netns = "" }, "CNI_NETNS"},
		{func(r *agent.PodRequest) { r.Netns = "/nowhere" }, "network namespace"},
		{func(r *agent.PodRequest) { r.IfName = "sixteen-bytes-xx" }, "interface name"},
	} {
		r := request(pod, "uid-a", "c1")
		c.change(&r)
		if _, err := p.Add(ctx, r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", r, err, c.want)
		}
	}
}

// A pod's link is guarded before it is set up, again by Start after a restart,
// and one that cannot be guarded is not there.
func TestPodGuard(t *testing.T) {
	ctx := context.Background()
	node, pod := newNS(t), newNS(t)
	dir := t.TempDir()
	p := openPods(t, node, dir, nil)
	var guarded []int
	refuse := errors.New("no program")
	p.cfg.Guard = func(ifindex int) error {
		link, err := p.nl.LinkByIndex(ifindex)
		if err != nil {
			return err
		}
		if link.Attrs().Flags&net.FlagUp != 0 {
			t.Error("the link was up before it was guarded")
		}
		return refuse
	}
	if _, err := p.Add(ctx, request(pod, "uid-a", "c1")); !errors.Is(err, refuse) {
		t.Fatalf("a pod without a guard was connected: %v", err)
	}
	if _, err := p.nl.LinkByName(hostIfName("uid-a")); !isLinkNotFound(err) {
		t.Errorf("its link is still there: %v", err)
	}
	p.cfg.Guard = func(ifindex int) error { guarded = append(guarded, ifindex); return nil }
	if _, err := p.Add(ctx, request(pod, "uid-a", "c1")); err != nil {
		t.Fatal(err)
	}
	p.Close()

	again := openPods(t, node, dir, nil)
	defer again.Close()
	again.cfg.Guard = func(ifindex int) error { guarded = append(guarded, ifindex); return nil }
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	if len(guarded) != 2 || guarded[0] != guarded[1] {
		t.Errorf("guarded %v: want the link once by ADD and once by Start", guarded)
	}
	again.cfg.Guard = func(int) error { return refuse }
	if err := again.Start(); !errors.Is(err, refuse) {
		t.Errorf("Start says %v", err)
	}
}
