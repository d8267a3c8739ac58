package apiserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// stallingRelay passes bytes on, except that it can stop reading what the
// server sends, as the kernel of a stopped process does.
type stallingRelay struct {
	addr    string
	mu      sync.Mutex
	stalled chan struct{} // closed to go on; nil = it flows
}

func newStallingRelay(t *testing.T, to string) *stallingRelay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &stallingRelay{addr: l.Addr().String()}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { l.Close(); r.flow() })
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			all.Go(func() { defer server.Close(); _, _ = io.Copy(server, client) })
			all.Go(func() { defer client.Close(); r.copy(client, server) })
		}
	})
	return r
}

func (r *stallingRelay) copy(to io.Writer, from io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		r.mu.Lock()
		wait := r.stalled
		r.mu.Unlock()
		if wait != nil {
			<-wait
		}
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (r *stallingRelay) stall() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stalled = make(chan struct{})
}

func (r *stallingRelay) flow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stalled != nil {
		close(r.stalled)
		r.stalled = nil
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A reader that is stopped costs no more memory than its windows, however much
// is published meanwhile; when it goes on, it catches up.
func TestStoppedReaderCostsLittle(t *testing.T) {
	a := startRig(t, "aws", 1)
	relay := newStallingRelay(t, a.addr)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	prefix := clustermesh.ScopePrefix(clustermesh.ScopeExport, "aws")
	const readers = 8
	var caches []*kvstore.Memory
	var follows sync.WaitGroup
	defer follows.Wait()
	defer cancel()
	for i := range readers {
		store, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{relay.addr}, TLS: a.tls(a.leaf(certs.Node("aws", fmt.Sprintf("n%d", i)), time.Hour))})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		c := kvstore.NewReplica(kvstore.MemoryOptions{History: 100})
		caches = append(caches, c)
		follows.Go(func() {
			_ = kvstore.Follow(ctx, kvstore.FollowConfig{Stores: []kvstore.Store{store}, Prefix: prefix, Sink: c.Sink()})
		})
	}
	value := make([]byte, 1<<10)
	publish := func(commits int) {
		t.Helper()
		for n := range commits {
			ops := make([]kvstore.Op, 100)
			for i := range ops {
				v := append([]byte(fmt.Sprintf("%d/%d/", n, i)), value...)
				ops[i] = kvstore.Put(fmt.Sprintf("%saddress/n1/%d", prefix, i), v, 0)
			}
			if _, err := a.store.Commit(t.Context(), ops...); err != nil {
				t.Fatal(err)
			}
		}
	}
	caughtUp := func() bool {
		at := a.store.Position()
		for _, c := range caches {
			if got := c.Position(); got.StoreID != at.StoreID || got.Revision < at.Revision {
				return false
			}
		}
		return true
	}
	publish(300) // the store's own history is full now
	waitUntil(t, "all have read", caughtUp)
	before := heap()
	relay.stall()
	publish(2000) // 200 MB
	after := heap()
	if grown := (after - before) >> 20; grown > 96 {
		t.Errorf("%d stopped readers cost %d MiB", readers, grown)
	} else {
		t.Logf("%d stopped readers cost %d MiB while 200 MiB were published", readers, grown)
	}
	relay.flow()
	waitUntil(t, "all have caught up", caughtUp)
}
