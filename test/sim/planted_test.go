package sim

import (
	"context"
	"iter"
	"strings"
	"sync"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Faults that are planted at the edges of the real code, to show that the
// invariants can fail: each is found within a few seeds, by the invariant that is
// there for it, and comes down to a few steps.
const (
	plantSilence   = "silence"   // an agent takes a server that does not answer for an empty one
	plantWakeup    = "wakeup"    // an agent misses a change now and then
	plantOrder     = "order"     // slots leave before the services that name them
	plantUnchecked = "unchecked" // a peer is believed whatever it says of addresses
	plantUnfenced  = "unfenced"  // a server's commits do not ask whether it leads
)

func TestPlanted(t *testing.T) {
	for _, c := range []struct {
		plant, invariant string
		steps            int // that it comes down to, at most
	}{
		{plantSilence, "silence", 2},
		{plantWakeup, "rest", 2},
		{plantOrder, "slots", 5},
		{plantUnchecked, "identity", 1},
		{plantUnfenced, "leader", 3},
	} {
		t.Run(c.plant, func(t *testing.T) {
			t.Parallel()
			const seeds = 60
			for seed := uint64(1); seed <= seeds; seed++ {
				s := generate(seed)
				s.Plant = c.plant
				f, _ := run(t, s)
				if f == nil {
					continue
				}
				if f.invariant != c.invariant {
					t.Logf("seed %d: %s was violated first: %s", seed, f.invariant, f.what)
					continue
				}
				least, again := shrunk(t, s, c.invariant, 200)
				t.Logf("seed %d, %s: %s\n%s", seed, again, f.what, least)
				if len(least.Steps) > c.steps {
					t.Errorf("the smallest schedule has %d steps, want at most %d:\n%s", len(least.Steps), c.steps, least)
				}
				least.Plant = ""
				if f, _ := run(t, least); f != nil {
					t.Errorf("without the planted fault: %s: %s", f.invariant, f.what)
				}
				return
			}
			t.Errorf("not found by %d seeds", seeds)
		})
	}
}

// silence is an empty list that pretends to be whole, in place of an error.
func (c *conn) silence(ctx context.Context, prefix string, visit func([]kvstore.KV) error) (kvstore.Position, bool) {
	_, _, end, err := c.open(ctx)
	if err == nil {
		end()
	}
	marker := clustermesh.ClusterKey(export, c.to.c.Name)
	value, has := contentOf(c.to.c.store(), marker)[marker]
	if err == nil || !has {
		return kvstore.Position{}, false
	}
	if strings.HasPrefix(marker, prefix) {
		if err := visit([]kvstore.KV{{Key: marker, Value: value, ModRevision: 1, CreateRevision: 1}}); err != nil {
			return kvstore.Position{}, false
		}
	}
	return c.to.c.store().Position(), true
}

// swallow says whether a batch gets lost.
func (c *conn) swallow(b kvstore.Batch) bool {
	return len(b.Events) > 0 && c.s.begun.Load() && c.s.net.chance(20)
}

// unchecked admits every peer for every cluster's addresses.
func (s *sim) unchecked(p *clustermesh.Peer) *clustermesh.Peer {
	wide := *p
	for _, c := range s.clusters {
		if c.Name != p.Name {
			wide.PodPrefixes = append(wide.PodPrefixes[:len(wide.PodPrefixes):len(wide.PodPrefixes)], c.prefixes...)
		}
	}
	return &wide
}

// uncheckedValue is a peer's record, as an agent is to read it.
func (s *sim) uncheckedValue(kv *kvstore.KV) {
	key, err := clustermesh.ParseKey(kv.Key)
	if err != nil || key.Kind != clustermesh.KindPeer || kv.Value == nil {
		return
	}
	r, err := clustermesh.Decode(key, kv.Value)
	if err != nil {
		return
	}
	if value, err := clustermesh.Encode(s.unchecked(r.(*clustermesh.Peer))); err == nil {
		kv.Value = value
	}
}

// believing is a store of the own cluster that admits every peer for everything.
type believing struct {
	kvstore.Store
	s *sim
}

func (b believing) List(ctx context.Context, prefix string, at kvstore.Position, visit func([]kvstore.KV) error) (kvstore.Position, error) {
	return b.Store.List(ctx, prefix, at, func(kvs []kvstore.KV) error {
		kvs = append([]kvstore.KV(nil), kvs...)
		for i := range kvs {
			b.s.uncheckedValue(&kvs[i])
		}
		return visit(kvs)
	})
}

func (b believing) Watch(ctx context.Context, prefix string, after kvstore.Position) iter.Seq2[kvstore.Batch, error] {
	return func(yield func(kvstore.Batch, error) bool) {
		for batch, err := range b.Store.Watch(ctx, prefix, after) {
			batch.Events = append([]kvstore.Event(nil), batch.Events...)
			for i := range batch.Events {
				b.s.uncheckedValue(&batch.Events[i].KV)
			}
			if !yield(batch, err) {
				return
			}
		}
	}
}

// misordered holds back changes of services that name fewer slots than before,
// until slots have left.
type misordered struct {
	agent.Table[agent.ServiceKey, agent.ServiceRow]
	rows func() map[agent.ServiceKey]agent.ServiceRow
	mu   sync.Mutex
	held map[agent.ServiceKey]agent.ServiceRow
}

type misorderedSlots struct {
	agent.Table[agent.SlotKey, agent.SlotRow]
	services *misordered
}

func (m *misordered) Put(rows map[agent.ServiceKey]agent.ServiceRow) error {
	now, held := map[agent.ServiceKey]agent.ServiceRow{}, map[agent.ServiceKey]agent.ServiceRow{}
	before := m.rows()
	for k, row := range rows {
		if old, had := before[k]; had && slotsOf(row) < slotsOf(old) {
			held[k] = row
		} else {
			now[k] = row
		}
	}
	m.mu.Lock()
	m.held = held
	m.mu.Unlock()
	return m.Table.Put(now)
}

func slotsOf(r agent.ServiceRow) (n uint32) {
	for _, g := range r.Groups {
		n += g.Count
	}
	return n
}

func (m misorderedSlots) Delete(keys []agent.SlotKey) error {
	if err := m.Table.Delete(keys); err != nil {
		return err
	}
	m.services.mu.Lock()
	held := m.services.held
	m.services.held = nil
	m.services.mu.Unlock()
	return m.services.Table.Put(held)
}

// plantTables puts a planted fault into a node's tables.
func (n *node) plantTables(t agent.Tables) agent.Tables {
	if n.s.plant == plantOrder {
		services := &misordered{Table: t.Services, rows: n.services.Rows}
		t.Services, t.Slots = services, misorderedSlots{t.Slots, services}
	}
	return t
}

// planted is a connection with a planted fault.
func (c *conn) planted() kvstore.Store {
	if c.s.plant == plantUnchecked && !c.peer {
		return believing{c, c.s}
	}
	return c
}
