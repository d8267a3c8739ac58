package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd/embed"
	"github.com/tombolo-mesh/tombolo/kvstore/kvtest"
)

// chain is what stands between a mesh API server and an agent: an embedded
// etcd, followed into a watch cache, served by a port, read by a Store.
func chain(t testing.TB) (written kvstore.Store, read *port) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	e, err := embed.Start(ctx, embed.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	replica := kvstore.NewReplica(kvstore.MemoryOptions{})
	t.Cleanup(replica.Close)
	following, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := kvstore.Follow(following, kvstore.FollowConfig{Stores: []kvstore.Store{e.Store()}, Prefix: "/", Sink: replica.Sink()})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("follow: %v", err)
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	select {
	case <-replica.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("the watch cache is never ready")
	}
	return e.Store(), serve(t, newCA(t), "", replica, everything)
}

func TestChain(t *testing.T) {
	w, p := chain(t)
	r := p.open(t, "reader", compressed)
	kvtest.RunPair(t, func(*testing.T) (writer, reader kvstore.Store) { return w, r }, kvtest.ReadOnly())
}

// BenchmarkChain is the time from a commit into a fsynced etcd until a reader of
// the port has the event.
func BenchmarkChain(b *testing.B) {
	written, p := chain(b)
	s := p.open(b, "bench")
	ctx, cancel := context.WithCancel(context.Background())
	standing, arrived, ended := make(chan struct{}), make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		first := true
		for batch, err := range s.Watch(ctx, "/a/", kvstore.Position{}) {
			if err != nil {
				b.Error(err)
				return
			}
			if first {
				close(standing)
				first = false
			}
			if len(batch.Events) > 0 {
				arrived <- struct{}{}
			}
		}
	}()
	<-standing
	for n := 0; b.Loop(); n++ {
		put(b, written, "/a/key", fmt.Sprint(n))
		<-arrived
	}
	cancel()
	<-ended
}
