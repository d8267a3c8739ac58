package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// publishing is a mesh API server without its port and admin socket, over a
// store of the test's own.
type publishing struct {
	*server
	store kvstore.Store
	stop  func()
}

// staticSource delivers what a test hands it.
type staticSource struct{ changes chan Objects }

func (s *staticSource) Run(ctx context.Context, deliver func(Objects)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-s.changes:
			deliver(o)
		}
	}
}

// startPublishing starts a replica. It stops at the end of the test, or by stop.
func startPublishing(t testing.TB, cfg Config, store kvstore.Store) *publishing {
	t.Helper()
	if cfg.Cluster == "" {
		cfg.Cluster, cfg.ID = "aws", 1
	}
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
	cfg.Listen, cfg.Socket, cfg.Version = "127.0.0.1:0", "unused", "v1.0.0"
	cfg.Advertise = []string{"mesh.example:9443"}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Open = func(context.Context) (StoreHandle, error) { return StoreHandle{Store: store}, nil }
	opened, err := OpenPublishing(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := opened.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	var once sync.Once
	p := &publishing{server: opened.server, store: store}
	p.stop = func() {
		once.Do(func() {
			cancel()
			<-ended
		})
	}
	t.Cleanup(p.stop)
	return p
}

// dumpStore is what a store holds under a prefix, without what is random.
func dumpStore(store kvstore.Store, prefix string) string {
	records := make(map[clustermesh.Key]clustermesh.Record)
	_, err := store.List(context.Background(), clustermesh.Root+prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			key, err := clustermesh.ParseKey(kv.Key)
			if err != nil {
				continue // private
			}
			r, err := clustermesh.Decode(key, kv.Value)
			if err != nil {
				return err
			}
			if c, ok := r.(*clustermesh.Cluster); ok {
				c.Incarnation = 0
			}
			records[key] = r
		}
		return nil
	})
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	return clustermesh.Dump(records)
}

// problemText is every present problem, one a line.
func (p *publishing) problemText() string {
	var b strings.Builder
	for _, q := range p.problems.All() {
		fmt.Fprintln(&b, q.Text())
	}
	return b.String()
}

// eventually waits until got yields want. Nothing is slept for: it looks again
// when the machine had time to do something.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 10 s: %s", what)
}

func prefixList(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, text := range texts {
		ps = append(ps, netip.MustParsePrefix(text))
	}
	return ps
}

func addrList(texts ...string) []netip.Addr {
	var as []netip.Addr
	for _, text := range texts {
		as = append(as, netip.MustParseAddr(text))
	}
	return as
}
