package linux

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// loadObjects loads the programs into a bpffs and cgroup of the test's own.
func loadObjects(t *testing.T) *bpf.Objects {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("bpffs", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	root, err := bpf.FindCgroup2()
	if err != nil {
		t.Skip(err)
	}
	cgroup := filepath.Join(root, "tombolo-linux-test-"+unique())
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(cgroup); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	pins := filepath.Join(dir, "tombolo")
	o, err := bpf.Load(bpf.Options{PinDir: pins, CgroupPath: cgroup, Sizes: bpf.Sizes{
		Services: 64, Slots: 64, IPCache: 64, IPPrefixes: 64, Endpoints: 64, Policy: 64, Maglev: 16, Flows: 1024, Fragments: 64, Affinity: 64,
		SocketReverse: 64, UDPChoice: 64, Events: 1 << 18,
	}})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		o.Close()
		if err := bpf.Unload(pins); err != nil {
			t.Errorf("unload: %v", err)
		}
	})
	return o
}

// Packets of a pod become events: by the real program, through the real ring.
func TestReadEvents(t *testing.T) {
	o := loadObjects(t)
	host, pod := newNS(t), newNS(t)
	host.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", pod.name)
	host.ip("address", "add", "10.1.1.1/24", "dev", "v0")
	host.ip("link", "set", "v0", "up")
	pod.ip("address", "add", "10.1.1.10/24", "dev", "v1")
	pod.ip("address", "add", "10.9.9.9/32", "dev", "v1")
	pod.ip("link", "set", "v1", "up")
	var index int
	host.in(func() error {
		dev, err := net.InterfaceByName("v0")
		if err != nil {
			return err
		}
		index = dev.Index
		pod.ip("neigh", "replace", "10.1.1.1", "lladdr", dev.HardwareAddr.String(), "dev", "v1", "nud", "permanent")
		return o.AttachPod(index)
	})
	put := func(m interface{ Put(key, value any) error }, key, value any) {
		if err := m.Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	a := toAddr(agent.MakeAddr(netip.MustParseAddr("10.1.1.10")))
	put(o.Endpoints, a, bpf.Endpoint{Ifindex: uint32(index), Identity: 1<<20 | 5})
	put(o.IPCache, a, bpf.IPCache{Identity: 1<<20 | 5, Node: 1})
	put(o.IPCache, toAddr(agent.MakeAddr(netip.MustParseAddr("10.1.1.1"))), bpf.IPCache{Identity: 1, Node: 1})

	ctx, stop := context.WithCancel(t.Context())
	got, ended := make(chan agent.FlowEvent, 1000), make(chan error)
	go func() {
		ended <- ReadEvents(ctx, o.Events, func(_ context.Context, events []agent.FlowEvent) error {
			for _, e := range events {
				got <- e
			}
			return nil
		})
	}()
	before := time.Now()
	const many = 300
	pod.in(func() error {
		if err := send("10.1.1.10:5000", "10.1.1.1:9"); err != nil {
			return err
		}
		for i := range many {
			if err := send(fmt.Sprintf("10.9.9.9:%d", 6000+i), "10.1.1.1:9"); err != nil {
				return err
			}
		}
		return nil
	})
	next := func() agent.FlowEvent {
		for {
			select {
			case e := <-got:
				if e.Src.IP().Is4() { // IPv6 says hello on new links
					return e
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no event")
			}
		}
	}
	want := agent.FlowEvent{
		Verdict: agent.FlowForwarded, Reason: "flow_new", Src: agent.MakeAddr(netip.MustParseAddr("10.1.1.10")), SrcPort: 5000,
		Dst: agent.MakeAddr(netip.MustParseAddr("10.1.1.1")), DstPort: 9, Proto: 17, SrcIdentity: 1<<20 | 5, DstIdentity: 1, IfIndex: uint32(index),
	}
	e := next()
	if d := e.Time.Sub(before); d < -time.Second || d > 30*time.Second {
		t.Errorf("the first event is of %v, sent at %v", e.Time, before)
	}
	if e.Time = (time.Time{}); e != want {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
	for i := range many {
		e := next()
		if e.Verdict != agent.FlowDropped || e.Reason != "drop_spoofed" || int(e.SrcPort) != 6000+i || e.Src.String() != "10.9.9.9" {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if c, err := o.Counters(); err != nil || c["event_lost"] != 0 || c["drop_spoofed"] != many {
		t.Errorf("%v, %v", err, c)
	}
}

// send sends a datagram from inside the calling thread's namespace.
func send(from, to string) error {
	src, err := net.ResolveUDPAddr("udp4", from)
	if err != nil {
		return err
	}
	dst, err := net.ResolveUDPAddr("udp4", to)
	if err != nil {
		return err
	}
	c, err := net.DialUDP("udp4", src, dst)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("hello"))
	return err
}

// Bytes become an event field by field; what is too short is none.
func TestFlowEvent(t *testing.T) {
	e := bpf.Event{
		Time: 2e9, Src: bpf.Addr{B: netip.MustParseAddr("::ffff:10.1.1.10").As16()}, Dst: bpf.Addr{B: netip.MustParseAddr("fd00::1").As16()},
		Backend: bpf.Addr{B: netip.MustParseAddr("fd00::2").As16()}, Sport: swap(5000), Dport: swap(80), BackendPort: swap(8080),
		Proto: 6, Kind: bpf.EventCut, Reason: 23, SrcIdentity: 7, DstIdentity: 8, Rule: 9, Ifindex: 10,
	}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e))
	boot := time.Unix(1000, 0)
	got, ok := flowEvent(raw, boot)
	text := fmt.Sprintln(ok, got.Time.Unix(), got.Verdict, got.Src, got.SrcPort, got.Dst, got.DstPort, got.Backend, got.BackendPort, got.Proto, got.Reason, got.SrcIdentity, got.DstIdentity, got.Rule, got.IfIndex)
	if want := fmt.Sprintln(true, 1002, "cut", "10.1.1.10", 5000, "fd00::1", 80, "fd00::2", 8080, 6, bpf.Reason(23), 7, 8, 9, 10); text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	if _, ok := flowEvent(raw[:len(raw)-1], boot); ok {
		t.Error("half a record is an event")
	}
	if v := flowVerdict(9); !strings.Contains(string(v), "9") {
		t.Errorf("a kind of a later version: %q", v)
	}
}
