package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// badRate is how many records a bad peer writes a second.
const badRate = 1000

// badPeers times the own cluster's changes, source → BPF map, while a peer floods
// the agent with changes, lies, or hangs; beside the same while the peer writes as
// much into a place that nobody follows, so that what differs is what the agent
// makes of it and not what the peer's process takes from the machine.
func badPeers(ctx context.Context, b *bench) error {
	ours, cleanup, err := newChain(ctx, b)
	if err != nil {
		return err
	}
	defer cleanup()
	// The peer's services are the own cluster's, too: each change is one of a row.
	if err := ours.cluster.Apply("services", homeServices(scales["small"].services)); err != nil {
		return err
	}
	p, err := startPeer(ctx, ours.lab, ours.cluster, "small")
	if err != nil {
		return err
	}
	defer p.end()
	tell := func(line string) func() error {
		return func() error { _, err := p.ask(line); return err }
	}
	quiet := tell("quiet")
	signal := func(s syscall.Signal) func() error { return func() error { return p.proc.Signal(s) } }
	modes := []struct {
		name       string
		begin, end func() error
	}{
		{"a quiet peer", quiet, quiet},
		{"a peer that hangs", signal(syscall.SIGSTOP), signal(syscall.SIGCONT)},
		{fmt.Sprintf("%d records a second that nobody follows", badRate), tell(fmt.Sprint("unread ", badRate)), quiet},
		{fmt.Sprintf("%d changes of endpoints a second", badRate), tell(fmt.Sprint("flood ", badRate)), quiet},
		{fmt.Sprintf("%d lies a second", badRate), tell(fmt.Sprint("lie ", badRate)), quiet},
	}
	took := make([]latencies, len(modes))
	for range b.runs {
		for i, m := range modes {
			if err := m.begin(); err != nil {
				return err
			}
			time.Sleep(500 * time.Millisecond) // what it does is under way
			sample, err := paced(ctx, 300, 5*time.Millisecond, func(ctx context.Context) (time.Duration, error) { return ours.change(ctx, ours.memory) })
			if err := errors.Join(err, m.end()); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			took[i].add(sample)
		}
	}
	report([]string{"300 changes a run, one per 5 ms, beside", "p50", "p99", "× yardstick p50", "× yardstick p99"},
		took[0].row(modes[0].name, nil), took[1].row(modes[1].name, &took[0]), took[2].row(modes[2].name, nil),
		took[3].row(modes[3].name, &took[2]), took[4].row(modes[4].name, &took[2]), []string{"aim", "", "", "at most 1.1"})
	return nil
}

// writer is what a synthetic peer does to its store besides standing still.
type writer struct {
	store *kvstore.Memory
	own   clustermesh.Cluster
	size  scale

	stop func()
}

// do ends what is being done and begins another thing, at a rate per second.
func (w *writer) do(ctx context.Context, what, rate string) error {
	if w.stop != nil {
		w.stop()
		w.stop = nil
	}
	if what == "quiet" {
		return nil
	}
	n, err := strconv.Atoi(rate)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	w.stop = func() { cancel(); running.Wait() }
	running.Go(func() {
		const each = 10 * time.Millisecond
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		for tick := time.NewTicker(each); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			for range n / int(time.Second/each) {
				key, value, err := w.record(what, rng)
				if err == nil {
					_, err = w.store.Commit(ctx, kvstore.Put(key, value, 0))
				}
				if err != nil && ctx.Err() == nil {
					panic(err) // a bench that writes nothing measures nothing
				}
			}
		}
	})
	return nil
}

// record is one more thing to write.
func (w *writer) record(what string, rng *rand.Rand) (key string, value []byte, err error) {
	origin := clustermesh.OriginAt(time.Now())
	scope := clustermesh.ScopeExport
	var r clustermesh.Record
	switch what {
	case "lie": // addresses and identities of others
		r = &clustermesh.Address{Name: clustermesh.AddressName{Node: "n1", Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 1, byte(rng.Uint32())}), 32)},
			Identity: clustermesh.MakeIdentity(1, uint32(rng.IntN(100)+1)), Owner: uid(rng), Namespace: "default", Pod: "liar", Origin: origin}
	default: // endpoints come and go
		i := rng.IntN(w.size.services)
		s := slice(rng, w.own.ID, i, w.size, origin)
		s.Name.Slice = "a"
		for e := range s.Endpoints {
			s.Endpoints[e].Ready = rng.IntN(2) == 0
		}
		r = s
	}
	if what == "unread" {
		scope = clustermesh.ScopeLocal
	}
	value, err = clustermesh.Encode(r)
	return clustermesh.KeyOf(scope, w.own.Name, r).String(), value, err
}
