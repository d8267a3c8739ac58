package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd/embed"
	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// publication fills an embedded etcd (fsync on) through the Publisher, with the
// watch cache following as in the mesh API server; beside the same values
// written by plain transactions, one at a time.
func publication(ctx context.Context, b *bench) error {
	records, err := dataset("aws", 1, large)
	if err != nil {
		return err
	}
	kvs, err := encode("aws", records)
	if err != nil {
		return err
	}
	var ours, bare []float64
	for range b.runs {
		t, err := withEtcd(ctx, func(store kvstore.Store) error { return publishAll(ctx, store, kvs) })
		if err != nil {
			return err
		}
		ours = append(ours, t.Seconds())
		if t, err = withEtcd(ctx, func(store kvstore.Store) error { return putAll(ctx, store, kvs) }); err != nil {
			return err
		}
		bare = append(bare, t.Seconds())
	}
	report([]string{fmt.Sprintf("%d keys, Publisher and watch cache", len(kvs)), stats.Spread(ours, "s")},
		[]string{"the same, bare transactions of 100", stats.Spread(bare, "s")},
		[]string{"ratio", stats.Short(stats.Median(ours) / stats.Median(bare))}, []string{"aim", "2 s"}, []string{incumbent("the same"), "57 s"})
	return nil
}

// withEtcd times fn on a new, empty etcd.
func withEtcd(ctx context.Context, fn func(kvstore.Store) error) (time.Duration, error) {
	dir, err := os.MkdirTemp("", "tombolo-bench-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	e, err := embed.Start(ctx, embed.Config{Dir: dir})
	if err != nil {
		return 0, err
	}
	defer e.Close()
	begin := time.Now()
	err = fn(e.Store())
	return time.Since(begin), err
}

func publishAll(ctx context.Context, store kvstore.Store, kvs []kvstore.KV) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	marker := clustermesh.ClusterKey(clustermesh.ScopeExport, "aws")
	p := kvstore.NewPublisher(kvstore.PublishConfig{Store: store, Prefixes: []string{clustermesh.ScopePrefix(clustermesh.ScopeExport, "aws")},
		Marker: marker, MarkerValue: func(bool, []byte) []byte { return []byte("whole") }, Same: clustermesh.Same, Kind: clustermesh.KindOf})
	cache := kvstore.NewReplica(kvstore.MemoryOptions{})
	defer cache.Close()
	done := make(chan error, 2)
	go func() { done <- p.Run(ctx) }()
	go func() {
		done <- kvstore.Follow(ctx, kvstore.FollowConfig{Stores: []kvstore.Store{store}, Prefix: clustermesh.Root, Sink: cache.Sink()})
	}()
	for _, kv := range kvs {
		p.Set(kv.Key, kv.Value)
	}
	p.Listed()
	// The marker is the last thing written, and the cache has it.
	for cache.Len() < len(kvs)+1 {
		select {
		case err := <-done:
			return fmt.Errorf("ended early: %w", err)
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

func putAll(ctx context.Context, store kvstore.Store, kvs []kvstore.KV) error {
	for len(kvs) > 0 {
		n := min(100, len(kvs))
		ops := make([]kvstore.Op, 0, n)
		for _, kv := range kvs[:n] {
			ops = append(ops, kvstore.Put(kv.Key, kv.Value, 0))
		}
		if _, err := store.Commit(ctx, ops...); err != nil {
			return err
		}
		kvs = kvs[n:]
	}
	return nil
}
