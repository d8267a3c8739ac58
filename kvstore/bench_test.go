package kvstore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// large is a store of one cluster's size: 81,000 keys with values of 128 bytes.
const large = 81000

func largeKey(i int) string {
	return fmt.Sprintf("/tombolo/v1/export/aws/address/node-%d/%d", i%1000, i)
}

func fillLarge(b *testing.B, m *Memory) {
	b.Helper()
	for i := 0; i < large; i += 100 {
		var ops []Op
		for j := i; j < min(i+100, large); j++ {
			ops = append(ops, Put(largeKey(j), make([]byte, 128), 0))
		}
		if _, err := m.Commit(context.Background(), ops...); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMemoryPut(b *testing.B) {
	m := NewMemory(MemoryOptions{})
	fillLarge(b, m)
	value := make([]byte, 128)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := m.Commit(context.Background(), Put(largeKey((i*7919)%large), value, 0)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMemoryFill(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		fillLarge(b, NewMemory(MemoryOptions{}))
	}
}

func BenchmarkMemoryList(b *testing.B) {
	m := NewMemory(MemoryOptions{})
	fillLarge(b, m)
	now := m.Position()
	for name, at := range map[string]Position{
		"now":            {},
		"100 events ago": {now.StoreID, now.Revision - 1},
		"oldest kept":    {now.StoreID, m.hist.floor},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				_, err := m.List(context.Background(), "/tombolo/v1/export/", at, func(kvs []KV) error { n += len(kvs); return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// One put until all watches have it.
func BenchmarkMemoryFanOut(b *testing.B) {
	for _, watches := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(watches), func(b *testing.B) { fanOut(b, watches) })
	}
}

func fanOut(b *testing.B, watches int) {
	m := NewMemory(MemoryOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	var stand, got, ended sync.WaitGroup
	stand.Add(watches)
	for range watches {
		ended.Go(func() {
			first := true
			for batch, err := range m.Watch(ctx, "a/", Position{}) {
				if err != nil {
					return
				}
				if first {
					first = false
					stand.Done()
				}
				for range batch.Events {
					got.Done()
				}
			}
		})
	}
	stand.Wait()
	b.ReportAllocs()
	for b.Loop() {
		got.Add(watches)
		if _, err := m.Commit(context.Background(), Put("a/b", nil, 0)); err != nil {
			b.Fatal(err)
		}
		got.Wait()
	}
	cancel()
	ended.Wait()
}

// A list of everything into a replica.
func BenchmarkFollowList(b *testing.B) {
	m := NewMemory(MemoryOptions{})
	fillLarge(b, m)
	b.ReportAllocs()
	for b.Loop() {
		r := NewReplica(MemoryOptions{})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- Follow(ctx, FollowConfig{Stores: []Store{m}, Sink: r.Sink()}) }()
		<-r.Ready()
		cancel()
		<-done
	}
}

func runPublisher(b *testing.B, c PublishConfig) (*Publisher, func()) {
	p := NewPublisher(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	return p, func() { cancel(); <-done }
}

// The publisher's own share of a first publication.
func BenchmarkPublishFirst(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		p, stop := runPublisher(b, PublishConfig{Store: NewMemory(MemoryOptions{}), Prefixes: []string{"/tombolo/"}})
		for i := range large {
			p.Set(largeKey(i), make([]byte, 128))
		}
		p.Listed()
		if err := p.WaitIdle(context.Background()); err != nil {
			b.Fatal(err)
		}
		stop()
	}
}

// From Set to the watch of a reader, idle in between.
func BenchmarkPublishLatency(b *testing.B) {
	m := NewMemory(MemoryOptions{})
	p, stop := runPublisher(b, PublishConfig{Store: m, Prefixes: []string{"a/"}})
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	seen := make(chan struct{})
	go func() {
		for batch, err := range m.Watch(ctx, "a/", Position{}) {
			if err != nil {
				return
			}
			if len(batch.Events) > 0 {
				seen <- struct{}{}
			}
		}
	}()
	time.Sleep(10 * time.Millisecond) // the watch stands
	for i := 0; b.Loop(); i++ {
		p.Set("a/b", fmt.Appendf(nil, "%d", i))
		<-seen
	}
}
