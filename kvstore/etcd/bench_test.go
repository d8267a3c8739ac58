package etcd_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// meshKeys fills a store as a cluster of 1,000 nodes does: 81,000 keys.
func meshKeys(b testing.TB) *kvstore.Memory {
	b.Helper()
	mem := kvstore.NewMemory(kvstore.MemoryOptions{})
	b.Cleanup(mem.Close)
	var ops []kvstore.Op
	add := func(kind string, n, size int) {
		for i := range n {
			value := make([]byte, 0, size+32)
			for seed := i; len(value) < size; seed++ {
				// Half of a value is noise, as addresses and keys are.
				sum := sha256.Sum256(fmt.Append(nil, kind, seed))
				value = append(append(value, sum[:8]...), "label=v "...)
			}
			ops = append(ops, kvstore.Put(fmt.Sprintf("/tombolo/v1/export/cluster-a/%s/name-%06d", kind, i), value[:size], 0))
			if len(ops) == kvstore.MaxOps {
				commit(b, mem, ops...)
				ops = ops[:0]
			}
		}
	}
	add("node", 1000, 192)
	add("service", 5000, 101)
	add("endpointslice", 5000, 139)
	add("identity", 20000, 138)
	add("address", 50000, 48)
	commit(b, mem, ops...)
	return mem
}

func BenchmarkList81000(b *testing.B) {
	p := serve(b, newCA(b), "", meshKeys(b), everything)
	for name, change := range map[string]func(*etcd.Config){"plain": func(*etcd.Config) {}, "zstd": compressed} {
		b.Run(name, func(b *testing.B) {
			s := p.open(b, "bench", change)
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				if _, err := s.List(context.Background(), "/tombolo/", kvstore.Position{}, func(kvs []kvstore.KV) error {
					n += len(kvs)
					return nil
				}); err != nil || n != 81000 {
					b.Fatalf("%d keys: %v", n, err)
				}
			}
		})
	}
}

// BenchmarkWatchLatency is the time from a commit until the reader has the event.
func BenchmarkWatchLatency(b *testing.B) {
	mem := kvstore.NewMemory(kvstore.MemoryOptions{})
	b.Cleanup(mem.Close)
	p := serve(b, newCA(b), "", mem, everything)
	s := p.open(b, "bench")
	ctx, cancel := context.WithCancel(context.Background())
	standing, arrived, ended := make(chan struct{}), make(chan time.Time, 1), make(chan struct{})
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
				arrived <- time.Now()
			}
		}
	}()
	<-standing
	for name, pause := range map[string]time.Duration{"backtoback": 0, "every5ms": 5 * time.Millisecond} {
		b.Run(name, func(b *testing.B) {
			var sum time.Duration
			n := 0
			for b.Loop() {
				began := time.Now()
				put(b, mem, "/a/key", "value")
				sum += (<-arrived).Sub(began)
				n++
				time.Sleep(pause)
			}
			b.ReportMetric(float64(sum.Microseconds())/float64(n), "µs/event")
		})
	}
	cancel()
	<-ended
}
