package etcd_test

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd/embed"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

// compactBy compacts through an etcd client.
func compactBy(client *clientv3.Client) kvtest.Option {
	return kvtest.Compacting(func(_, _ kvstore.Store, rev int64) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := client.Compact(ctx, rev, clientv3.WithCompactPhysical())
		return err
	})
}

func TestConformanceEmbedded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	e, err := embed.Start(ctx, embed.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	kvtest.Run(t, func(*testing.T) kvstore.Store { return e.Store() }, compactBy(e.Client()))
}

func TestConformanceOverTLS(t *testing.T) {
	e := startEtcd(t, newCA(t), "", "")
	s := open(t, e.config("tester"))
	kvtest.Run(t, func(*testing.T) kvstore.Store { return s }, compactBy(s.Client()))
}

// The pair is a Memory, written to directly, and a Store that reads it through
// the etcd API.
func TestConformancePort(t *testing.T) {
	c := newCA(t)
	for name, change := range map[string]func(*etcd.Config){"plain": func(*etcd.Config) {}, "zstd": compressed} {
		t.Run(name, func(t *testing.T) {
			kvtest.RunPair(t, func(t *testing.T) (writer, reader kvstore.Store) {
				mem := kvstore.NewMemory(kvstore.MemoryOptions{})
				t.Cleanup(mem.Close)
				return mem, serve(t, c, "", mem, everything).open(t, "reader", change)
			}, kvtest.ReadOnly())
		})
	}
}
