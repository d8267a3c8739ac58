package etcd_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

func TestBudgets(t *testing.T) {
	mem := filled(t)
	var budget atomic.Pointer[etcd.Budget]
	p := serve(t, newCA(t), "", mem, func(name string) (etcd.Access, error) {
		return etcd.Access{Name: name, Prefixes: []string{""}, Budget: *budget.Load()}, nil
	})
	t.Run("watches", func(t *testing.T) {
		budget.Store(&etcd.Budget{Watches: 2})
		s, other := p.open(t, "greedy"), p.open(t, "greedy") // one budget for both connections
		w := watch(t, s, "/a/", kvstore.Position{}).standing()
		watch(t, other, "/a/", kvstore.Position{}).standing()
		err := watch(t, s, "/a/", kvstore.Position{}).end()
		if err == nil || !strings.Contains(err.Error(), "budget of 2 watches") {
			t.Fatalf("third watch: %v", err)
		}
		watch(t, p.open(t, "modest"), "/a/", kvstore.Position{}).standing()
		w.cancel()
		w.end() //nolint:errcheck // it was cancelled
		deadline := time.Now().Add(10 * time.Second)
		for readers(p)["greedy"].Watches != 1 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		watch(t, s, "/a/", kvstore.Position{}).standing()
	})
	t.Run("requests", func(t *testing.T) {
		budget.Store(&etcd.Budget{RequestsPerSecond: 5})
		s := p.open(t, "hasty")
		var err error
		for n := 0; n < 100 && err == nil; n++ {
			_, err = s.Client().Get(t.Context(), "/a/1")
			if n < 5 && err != nil {
				t.Fatalf("request %d: %v", n, err)
			}
		}
		if status.Code(err) != codes.ResourceExhausted && !strings.Contains(fmt.Sprint(err), "5 requests per second") {
			t.Fatalf("100 requests at once: %v", err)
		}
		if _, err := p.open(t, "modest").Client().Get(t.Context(), "/a/1"); err != nil {
			t.Fatalf("another caller pays for it: %v", err)
		}
		if r := readers(p)["hasty"]; r.Refused == 0 || r.Requests == 0 || r.Bytes == 0 {
			t.Fatalf("counted %+v", r)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		budget.Store(&etcd.Budget{BytesPerSecond: 2000})
		for i := range 10 {
			put(t, mem, fmt.Sprintf("/big/%d", i), strings.Repeat("x", 2100))
		}
		began := time.Now()
		kvs, _ := list(t, p.open(t, "hungry"), "/big/", kvstore.Position{})
		if took := time.Since(began); len(kvs) != 10 || took < 300*time.Millisecond {
			t.Fatalf("21 kB at 2 kB/s after a burst of 20 kB: %d keys in %v", len(kvs), took)
		}
	})
}

// Many names of one group share what the group has; each of them and other groups
// keep their own.
func TestGroupBudgets(t *testing.T) {
	mem := filled(t)
	var budget, group atomic.Pointer[etcd.Budget]
	budget.Store(&etcd.Budget{Watches: 2})
	group.Store(&etcd.Budget{Watches: 3})
	p := serve(t, newCA(t), "", mem, func(name string) (etcd.Access, error) {
		cluster, _, _ := strings.Cut(name, "-")
		return etcd.Access{Name: name, Prefixes: []string{""}, Budget: *budget.Load(), Group: "cluster " + cluster, GroupBudget: *group.Load()}, nil
	})
	refused := func(name, want string) {
		t.Helper()
		if err := watch(t, p.open(t, name), "/a/", kvstore.Position{}).end(); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("a watch of %s: %v, want %q", name, err, want)
		}
	}
	n1 := p.open(t, "gcp-n1")
	w := watch(t, n1, "/a/", kvstore.Position{}).standing()
	watch(t, n1, "/a/", kvstore.Position{}).standing()
	refused("gcp-n1", "gcp-n1 exceeds its budget of 2 watches")
	watch(t, p.open(t, "gcp-n2"), "/a/", kvstore.Position{}).standing()
	for n := 3; n < 8; n++ {
		refused(fmt.Sprintf("gcp-n%d", n), "cluster gcp exceeds its budget of 3 watches")
	}
	watch(t, p.open(t, "azure-n1"), "/a/", kvstore.Position{}).standing()
	w.cancel()
	w.end() //nolint:errcheck // it was cancelled
	deadline := time.Now().Add(10 * time.Second)
	for readers(p)["gcp-n1"].Watches != 1 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if r := readers(p)["gcp-n7"]; r.Watches != 0 || r.Refused == 0 {
		t.Fatalf("a refused one counts %+v", r)
	}
	watch(t, p.open(t, "gcp-n9"), "/a/", kvstore.Position{}).standing()

	budget.Store(&etcd.Budget{})
	group.Store(&etcd.Budget{RequestsPerSecond: 5})
	var err error
	for n := 0; n < 100 && err == nil; n++ {
		_, err = p.open(t, fmt.Sprintf("edge-n%d", n)).Client().Get(t.Context(), "/a/1")
		if n < 5 && err != nil {
			t.Fatalf("request %d: %v", n, err)
		}
	}
	if !strings.Contains(fmt.Sprint(err), "cluster edge exceeds its budget of 5 requests per second") {
		t.Fatalf("100 requests of 100 names: %v", err)
	}
	if _, err := p.open(t, "azure-n2").Client().Get(t.Context(), "/a/1"); err != nil {
		t.Fatalf("another cluster pays for it: %v", err)
	}
}

func readers(p *port) map[string]etcd.Reader {
	m := map[string]etcd.Reader{}
	for _, r := range p.Readers() {
		m[r.Name] = r
	}
	return m
}

func TestCloseClient(t *testing.T) {
	var gone atomic.Bool
	mem := filled(t)
	p := serve(t, newCA(t), "", mem, func(name string) (etcd.Access, error) {
		if gone.Load() && name == "leaver" {
			return etcd.Access{}, errors.New("leaver is no member of this mesh")
		}
		return everything(name)
	})
	leaver, stayer := p.open(t, "leaver"), p.open(t, "stayer")
	w, other := watch(t, leaver, "/a/", kvstore.Position{}).standing(), watch(t, stayer, "/a/", kvstore.Position{}).standing()
	p.CloseClient(func(name string) bool { return name == "leaver" })
	if err := w.end(); err == nil || errors.Is(err, kvstore.ErrDenied) || !strings.Contains(err.Error(), "connect again") {
		t.Fatalf("a member's watch ended with %v", err)
	}
	w = watch(t, leaver, "/a/", kvstore.Position{}).standing()
	gone.Store(true)
	p.CloseClient(func(name string) bool { return name == "leaver" })
	wantErr(t, w.end(), kvstore.ErrDenied)
	_, _, err := tryList(leaver, "/a/", kvstore.Position{})
	wantErr(t, err, kvstore.ErrDenied)
	put(t, mem, "/a/x", "")
	other.events(1)
}

// A caller that does not read cannot keep its stream alive.
func TestCloseClientThatDoesNotRead(t *testing.T) {
	mem := kvstore.NewMemory(kvstore.MemoryOptions{})
	t.Cleanup(mem.Close)
	var ops []kvstore.Op
	for i := range 20 {
		ops = append(ops, kvstore.Put(fmt.Sprintf("/a/%d", i), make([]byte, 60<<10), 0))
	}
	start := commit(t, mem, ops...)
	p := serve(t, newCA(t), "", mem, everything)
	s := p.open(t, "stuck")
	w, err := pb.NewWatchClient(s.Client().ActiveConnection()).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	create(t, w, &pb.WatchCreateRequest{Key: []byte("/a/"), RangeEnd: []byte("/a0"), StartRevision: start.Revision})
	for range 20 {
		commit(t, mem, ops...)
	}
	deadline := time.Now().Add(10 * time.Second)
	for readers(p)["stuck"].Bytes < etcd.Window && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	p.CloseClient(func(string) bool { return true })
	for readers(p)["stuck"].Streams != 0 {
		if time.Now().After(deadline) {
			t.Fatal("the stream lives on")
		}
		time.Sleep(time.Millisecond)
	}
}
