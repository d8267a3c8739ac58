package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pins are the names in the directory, sorted.
func pins(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func reload(t testing.TB, opts Options) *Objects {
	t.Helper()
	o, err := Load(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// A killed and restarted agent finds its rows; what works goes on working, with
// no agent and while it loads.
func TestRestartIsNoOp(t *testing.T) {
	w := newWorld(t, true)
	o, opts := w.objects, w.options
	enter(t, opts.CgroupPath)
	o.program(t, front4, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
	podPort := w.pod.listen("", digest)
	before := pins(t, opts.PinDir)

	// All the time: new connections through sock.c, and through tunnel.c.
	var stop atomic.Bool
	failed := make(chan error, 1)
	var dials atomic.Int64
	go func() {
		defer close(failed)
		for !stop.Load() {
			c := newClient(t, false, tcp)
			err := c.connect(front4)
			c.close()
			if err == nil {
				err = dialOnce(w.remote, "10.1.1.5", podPort)
			}
			if err != nil {
				failed <- err
				return
			}
			dials.Add(1)
		}
	}()
	for range 20 {
		o.Close()
		atRest := dials.Load()
		for dials.Load() < atRest+2 && len(failed) == 0 {
			time.Sleep(time.Millisecond) // no agent: at least two more
		}
		o = reload(t, opts)
		w.objects = o
		w.attach(t)
	}
	stop.Store(true)
	if err := <-failed; err != nil {
		t.Errorf("after %d dials: %v", dials.Load(), err)
	}
	t.Logf("%d dials during 20 restarts", dials.Load())
	if after := pins(t, opts.PinDir); !slices.Equal(before, after) {
		t.Errorf("pins before: %v\nafter: %v", before, after)
	}
	result, err := queryTCX(w)
	if err == nil && len(result.Programs) != 1 {
		t.Errorf("%d programs on the tunnel", len(result.Programs))
	}
	var svc Service
	if err := o.Services.Lookup(frontendKey(front4, tcp), &svc); err != nil || svc.Id != 1 {
		t.Errorf("service row after the restarts: %v, %v", svc, err)
	}
}

// dialOnce fails if a packet had to be sent twice.
func dialOnce(s *space, address, port string) error {
	c, err := s.dial(address, port, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err == nil && info.Total_retrans > 0 {
		err = fmt.Errorf("a packet was lost: sent again %d times", info.Total_retrans)
	}
	return err
}

func queryTCX(w *world) (r *link.QueryResult, err error) {
	w.node.in(func() error {
		r, err = link.QueryPrograms(link.QueryOptions{Target: w.tunnel.Attrs().Index, Attach: ebpf.AttachTCXIngress})
		return nil
	})
	return r, err
}

// The tunnel device was made anew (its process died), maybe with another index.
func TestAttachTunnelAgain(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		w := newWorld(t, true, func(o *Options) { o.NoTCX = noTCX })
		port := w.pod.listen("", digest)
		check := func(what string) {
			t.Helper()
			c, err := w.remote.dial("10.1.1.5", port, 3*time.Second)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			c.Close()
		}
		check("first")
		w.attach(t)
		w.attach(t)
		check("attached again")

		second := newWorld(t, false)
		second.objects, second.options = w.objects, w.options
		second.node.tun("tun7") // so that indices differ
		second.attach(t)
		if w.objects.Features().Tunnel != "tcx" {
			continue
		}
		for i, w := range []*world{w, second} {
			if r, err := queryTCX(w); err != nil || len(r.Programs) != i {
				t.Errorf("device %d: %v, %v", i, r, err)
			}
		}
	}
}

func TestResizeKeepsRows(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	o.program(t, front4, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
	put(t, o.IPPrefixes, Prefix{Bits: 112, Addr: addr("10.2.0.0")}, IPCache{Identity: 9})
	c := newClient(t, false, tcp)
	c.mustConnect(front4)
	o.Close()

	opts.Sizes = Sizes{Services: 2048, Slots: 512, NodeHealth: 64, ClusterHealth: 32, IPCache: 64, IPPrefixes: 64,
		Endpoints: 32, SocketReverse: 8192, UDPChoice: 1024}
	o = reload(t, opts)
	for _, table := range o.tables(opts.Sizes) {
		if table.size != 0 && (*table.open).MaxEntries() != table.size {
			t.Errorf("%s has room for %d, wanted %d", table.name, (*table.open).MaxEntries(), table.size)
		}
	}
	if got := dial(t, front4); got != 'a' {
		t.Errorf("after the resize: answer from %c", got)
	}
	if got := c.peer(); got != front4 {
		t.Errorf("getpeername of an old connection says %s", got)
	}
	var row IPCache
	if err := o.IPPrefixes.Lookup(Prefix{Bits: 128, Addr: addr("10.2.3.4")}, &row); err != nil || row.Identity != 9 {
		t.Errorf("prefix row: %v, %v", row, err)
	}
	// New programs use the new maps, and the next start finds those.
	o.Close()
	o = reload(t, opts)
	if got := dial(t, front4); got != 'a' {
		t.Errorf("after another start: answer from %c", got)
	}
	for i := range uint16(64) {
		o.nodeDown(t, 7, i, true)
	}
	o.Close()
	opts.Sizes.NodeHealth = 32
	if _, err := Load(opts); err == nil || !strings.Contains(err.Error(), "tmb_nodehlth_1 from 64 to 32") {
		t.Errorf("64 rows into room for 32: %v", err)
	}
	opts.Sizes.NodeHealth = 64
	reload(t, opts)
	if got := dial(t, front4); got != 'a' {
		t.Errorf("after the refused resize: answer from %c", got)
	}
}

// A version with more reasons, or fewer, takes over: what it counts begins at zero.
func TestOtherReasons(t *testing.T) {
	for _, reasons := range []uint32{2, 1000} {
		o, opts := load(t)
		enter(t, opts.CgroupPath)
		o.program(t, front4, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
		size := o.Counts.MaxEntries()
		o.Close()
		other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: reasons})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := pinOver(other, filepath.Join(opts.PinDir, rowsMapTmbCounters1)); err != nil {
			t.Fatal(err)
		}
		o = reload(t, opts)
		if got := dial(t, front4); got != 'a' {
			t.Errorf("over %d reasons: answer from %c", reasons, got)
		}
		o.Close()
		o = reload(t, opts)
		if got := o.Counts.MaxEntries(); got != size {
			t.Errorf("over %d reasons: room for %d, wanted %d", reasons, got, size)
		}
		if _, err := o.Counters(); err != nil {
			t.Error(err)
		}
		o.Close()
	}
}

func TestRefusals(t *testing.T) {
	dir := pinDir(t)
	opts := Options{PinDir: dir, CgroupPath: cgroup(t), Sizes: small}
	refused := func(what, want string) {
		t.Helper()
		o, err := Load(opts)
		if err == nil {
			o.Close()
			t.Errorf("%s: loaded", what)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; expected to read %q", what, err, want)
		}
	}
	pin := func(name string, spec *ebpf.MapSpec) {
		t.Helper()
		m, err := ebpf.NewMap(spec)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	os.Mkdir(dir, 0o700)

	foreign := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 1}
	pin("tmb_services_2", foreign)
	refused("a newer version's map", "tmb_services_2")
	if got := pins(t, dir); !slices.Equal(got, []string{"tmb_services_2"}) {
		t.Errorf("refusing left %v", got)
	}
	os.Remove(filepath.Join(dir, "tmb_services_2"))

	pin("tmb_slots_1", foreign)
	refused("a map of another layout", "key size 8, expected 16")
	os.Remove(filepath.Join(dir, "tmb_slots_1"))

	pin("somebody_elses", foreign)
	pin("tmb_slots_1-new", foreign) // a crash between two steps
	o, err := Load(opts)
	if err != nil {
		t.Fatal(err)
	}
	refused("twice at once", "another agent is using")
	if err := Unload(dir); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("unload under an agent: %v", err)
	}
	o.Close()
	for range 2 {
		if err := Unload(dir); err != nil {
			t.Errorf("unload: %v", err)
		}
	}
	if got := pins(t, dir); !slices.Equal(got, []string{"somebody_elses"}) {
		t.Errorf("unload left %v", got)
	}

	opts.PinDir = t.TempDir()
	refused("no bpffs", "mount -t bpf")
	opts.PinDir, opts.CgroupPath = dir, t.TempDir()
	refused("no cgroup", opts.CgroupPath)
	Unload(dir)
}

// Unload ends translation at once, also where somebody still holds the links.
func TestUnload(t *testing.T) {
	o, opts := load(t)
	enter(t, opts.CgroupPath)
	direct := server(t, "tcp", "127.0.0.1", 'd')
	o.program(t, direct, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
	held, err := link.LoadPinnedLink(filepath.Join(opts.PinDir, sockProgTmbConnect4), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if got := dial(t, direct); got != 'a' {
		t.Fatalf("answer from %c", got)
	}
	o.Close()
	if err := Unload(opts.PinDir); err != nil {
		t.Fatal(err)
	}
	if got := dial(t, direct); got != 'd' {
		t.Errorf("unloaded: answer from %c", got)
	}
	if _, err := os.Stat(opts.PinDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %s with %v", opts.PinDir, pins(t, opts.PinDir))
	}
}

// Another cgroup takes the place of the first.
func TestCgroupChanges(t *testing.T) {
	o, opts := load(t)
	direct := server(t, "tcp", "127.0.0.1", 'd')
	o.program(t, direct, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
	o.Close()
	old := opts.CgroupPath
	opts.CgroupPath = cgroup(t)
	reload(t, opts)
	enter(t, old)
	if got := dial(t, direct); got != 'd' {
		t.Errorf("in the old cgroup: answer from %c", got)
	}
	enter(t, opts.CgroupPath)
	if got := dial(t, direct); got != 'a' {
		t.Errorf("in the new cgroup: answer from %c", got)
	}
}

// From clsact to tcx and back: one of them is there, never both.
func TestAttachTunnelOtherWay(t *testing.T) {
	w := newWorld(t, true)
	if w.objects.Features().Tunnel != "tcx" {
		t.Skip("kernel without tcx")
	}
	for _, noTCX := range []bool{true, false, true} {
		w.objects.Close()
		w.options.NoTCX = noTCX
		w.objects = reload(t, w.options)
		w.attach(t)
		r, err := queryTCX(w)
		if err != nil {
			t.Fatal(err)
		}
		filters, err := w.node.nl.FilterList(w.tunnel, netlink.HANDLE_MIN_INGRESS)
		if err != nil {
			t.Fatal(err)
		}
		if (len(r.Programs) == 0) != noTCX || (len(filters) == 1) != noTCX {
			t.Errorf("NoTCX %v: %d by tcx, %d by clsact", noTCX, len(r.Programs), len(filters))
		}
	}
	w.objects.Close()
	w.node.in(func() error { return Unload(w.options.PinDir) })
	if filters, err := w.node.nl.FilterList(w.tunnel, netlink.HANDLE_MIN_INGRESS); err != nil || len(filters) != 0 {
		t.Errorf("after unload: %v, %v", filters, err)
	}
}

// The cgroup was removed and made again under its name; the tunnel's device and
// its namespace are gone.
func TestPinnedLinksToNothing(t *testing.T) {
	w := newWorld(t, true)
	o, opts := w.objects, w.options
	direct := server(t, "tcp", "127.0.0.1", 'd')
	o.program(t, direct, tcp, 1, oneOf(testBackend{server(t, "tcp", "127.0.0.1", 'a'), 1}))
	o.Close()
	w.close()
	if err := os.Remove(opts.CgroupPath); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(opts.CgroupPath, 0o755); err != nil {
		t.Fatal(err)
	}
	opts.Sizes.Services = 2048 // a resize replaces the tunnel's program as well
	w.objects = reload(t, opts)
	enter(t, opts.CgroupPath)
	if got := dial(t, direct); got != 'a' {
		t.Errorf("in the new cgroup: answer from %c", got)
	}
	w.node.tun("tun0")
	w.tunnel = w.node.link("tun0")
	w.attach(t)
	if r, err := queryTCX(w); err == nil && len(r.Programs) != 1 {
		t.Errorf("on the new device: %v", r)
	}
}

func TestOpenMaps(t *testing.T) {
	o, opts := load(t)
	o.program(t, front4, tcp, 1)
	m, err := OpenMaps(opts.PinDir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var svc Service
	if err := m.Services.Lookup(frontendKey(front4, tcp), &svc); err != nil {
		t.Error(err)
	}
	if err := m.Services.Put(frontendKey(front6, tcp), svc); err == nil {
		t.Error("wrote through a read-only map")
	}
	if c, err := m.Counters(); err != nil || len(c) != int(rowsTmbReasonTMB_REASONS) {
		t.Errorf("counters: %v, %v", c, err)
	}
	if _, err := OpenMaps(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no maps there: %v", err)
	}
}
