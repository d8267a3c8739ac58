package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// small maps: the tests make many of them.
var small = Sizes{
	Services: 1024, Slots: 16384, NodeHealth: 1024, ClusterHealth: 64, IPCache: 1024,
	IPPrefixes: 1024, Endpoints: 64, SocketReverse: 4096, UDPChoice: 4096,
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
}

// pinDir mounts a private bpffs.
func pinDir(t testing.TB) string {
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
	return filepath.Join(dir, "tombolo")
}

var counter atomic.Uint32

// cgroup makes a cgroup of the test's own below the cgroup2 root.
func cgroup(t testing.TB) string {
	t.Helper()
	needRoot(t)
	root, err := FindCgroup2()
	if err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(root, fmt.Sprintf("tombolo-bpf-test-%d-%d", os.Getpid(), counter.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	return dir
}

// load loads into a bpffs and cgroup of the test's own.
func load(t testing.TB, change ...func(*Options)) (*Objects, Options) {
	t.Helper()
	opts := Options{PinDir: pinDir(t), CgroupPath: cgroup(t), Sizes: small}
	for _, c := range change {
		c(&opts)
	}
	o, err := Load(opts)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		o.Close()
		if err := Unload(opts.PinDir); err != nil {
			t.Errorf("unload: %v", err)
		}
	})
	return o, opts
}

// addr is an address as the maps hold it; port likewise.
func addr(s string) Addr { return Addr{B: netip.MustParseAddr(s).As16()} }

func port(p int) uint16 { return uint16(p)<<8 | uint16(p)>>8 }

func put(t testing.TB, m *ebpf.Map, key, value any) {
	t.Helper()
	if err := m.Put(key, value); err != nil {
		t.Fatalf("put into %v: %v", m, err)
	}
}

// enter moves the test process into the cgroup until the test ends. A socket
// belongs to the cgroup its process was in when it was made.
func enter(t testing.TB, dir string) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var home string
	for line := range strings.Lines(string(self)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			home = rest
		}
	}
	root, err := FindCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	move := func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			t.Fatalf("enter cgroup %s: %v", dir, err)
		}
	}
	move(dir)
	t.Cleanup(func() { move(filepath.Join(root, home)) })
}
