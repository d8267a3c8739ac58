package gossip

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// member is one agent on the wire.
type member struct {
	*Gossip
	addr netip.Addr
	stop context.CancelFunc
	done sync.WaitGroup
}

func key(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

// start brings an agent up; it knows of nodes 1 … n.
func start(w *wire, cluster string, i, n int, keys ...[]byte) *member {
	m := &member{addr: address(i)}
	at := netip.AddrPortFrom(m.addr, 9444)
	m.Gossip = New(Config{Cluster: cluster, Node: fmt.Sprintf("node-%d", i), Address: m.addr, Port: 9444, transport: w.plug(at)})
	peers := map[string][]netip.Addr{}
	for j := 1; j <= n; j++ {
		if j != i {
			peers[fmt.Sprintf("node-%d", j)] = []netip.Addr{address(j)}
		}
	}
	m.SetPeers(peers)
	if err := m.SetKeys(keys); err != nil {
		panic(err)
	}
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	m.done.Go(func() { m.Run(ctx) })
	return m
}

// stop stops agents in order. Goroutines of memberlist end a moment after it.
func stop(members ...*member) {
	for _, m := range members {
		m.stop()
	}
	for _, m := range members {
		m.done.Wait()
	}
	time.Sleep(time.Minute)
}

func (m *member) alive() []string {
	names := m.View().Alive
	slices.Sort(names)
	return names
}

// everybody waits until all see n members.
func everybody(t *testing.T, when string, n int, within time.Duration, members ...*member) {
	t.Helper()
	began := time.Now()
	for {
		missing := ""
		for _, m := range members {
			if alive := m.alive(); len(alive) != n {
				missing = fmt.Sprintf("%s sees %v", m.cfg.Node, alive)
			}
		}
		if missing == "" {
			return
		}
		if time.Since(began) > within {
			t.Fatalf("%s: after %v %s, want %d members", when, within, missing, n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func cluster(w *wire, n int) (all []*member) {
	for i := 1; i <= n; i++ {
		all = append(all, start(w, "aws", i, n, key(1)))
	}
	return all
}

func TestMembersFindOneAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		all := cluster(w, 5)
		everybody(t, "start", 5, 15*time.Second, all...)
		stop(all...)
	})
}

// A machine that loses its power is missed within a few seconds; one whose agent
// stops in order is not there any more, and nobody looks for it; both come back.
func TestDeathAndFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		all := cluster(w, 5)
		everybody(t, "start", 5, 15*time.Second, all...)
		time.Sleep(time.Minute)
		dead := all[4]
		w.power(dead.addr, false)
		everybody(t, "power cut", 4, 5*time.Second, all[:4]...)
		for _, m := range all[:4] {
			if v := m.View(); !slices.Equal(v.Dead, []string{"node-5"}) {
				t.Errorf("%s finds %v dead", m.cfg.Node, v.Dead)
			}
		}
		w.power(dead.addr, true)
		everybody(t, "power is back", 5, time.Minute, all...)

		stop(all[3])
		everybody(t, "farewell", 4, time.Second, all[0], all[1], all[2], all[4])
		for _, m := range all[:3] {
			if v := m.View(); len(v.Dead) > 0 {
				t.Errorf("%s finds %v dead; it said that it goes", m.cfg.Node, v.Dead)
			}
		}
		all[3] = start(w, "aws", 4, 5, key(1))
		everybody(t, "agent is back", 5, 15*time.Second, all...)
		stop(all...)
	})
}

// What one says all hear, within a fraction of a second; what it takes back is
// gone; what a process said that is no more does not count; who comes late hears
// what was said before.
func TestReportsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		all := cluster(w, 6)
		everybody(t, "start", 6, 15*time.Second, all...)
		missing := map[agent.NodeKey]uint8{{Cluster: 2, Node: 7}: 5, {Cluster: 2, Node: 300}: 3, {Cluster: 3, Node: 1}: 15}
		heard := func(when string, want map[agent.NodeKey]uint8, within time.Duration, by ...*member) {
			t.Helper()
			began := time.Now()
			for _, m := range by {
				for !mapsEqual(m.View().Missing["node-1"], want) {
					if time.Since(began) > within {
						t.Fatalf("%s: %s heard %v, want %v", when, m.cfg.Node, m.View().Missing["node-1"], want)
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
		}
		all[0].Report(missing)
		heard("said", missing, time.Second, all[1:]...)
		time.Sleep(time.Minute)
		heard("a minute later", missing, 0, all[1:]...)
		stop(all[5])
		all[5] = start(w, "aws", 6, 6, key(1))
		everybody(t, "back", 6, 15*time.Second, all...)
		heard("who comes late", missing, refresh+time.Second, all[5])
		fewer := map[agent.NodeKey]uint8{{Cluster: 2, Node: 7}: 8}
		all[0].Report(fewer)
		heard("changed", fewer, time.Second, all[1:]...)
		w.power(all[0].addr, false)
		everybody(t, "power cut", 5, 5*time.Second, all[1:]...)
		heard("the dead have no say", nil, 0, all[1:]...)
		stop(all...)
	})
}

func mapsEqual(a, b map[agent.NodeKey]uint8) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// The key is turned over node by node, step by step, and nobody is lost on the way;
// with the last step the old key opens nothing any more.
func TestKeyRotationLosesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		all := cluster(w, 5)
		everybody(t, "start", 5, 15*time.Second, all...)
		lost := false
		watch, over := context.WithCancel(t.Context())
		var watching sync.WaitGroup
		watching.Go(func() {
			for watch.Err() == nil {
				for _, m := range all {
					lost = lost || len(m.alive()) != 5
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
		for step, keys := range [][][]byte{{key(1), key(2)}, {key(2), key(1)}, {key(2)}} {
			for _, m := range all {
				if err := m.SetKeys(keys); err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				time.Sleep(3 * time.Second)
			}
			time.Sleep(30 * time.Second)
		}
		over()
		watching.Wait()
		if lost {
			t.Error("a member was lost on the way")
		}
		late := start(w, "aws", 6, 5, key(1))
		time.Sleep(30 * time.Second)
		if got := late.alive(); len(got) != 1 {
			t.Errorf("who has the old key alone sees %v", got)
		}
		everybody(t, "at the end", 5, 0, all...)
		stop(append(all, late)...)
	})
}

// Another cluster's agents are not listened to, even with the same key and sought
// on purpose; nor is anybody before there is a key.
func TestStrangersStayStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		aws := start(w, "aws", 1, 3, key(1))
		gcp := start(w, "gcp", 2, 3, key(1))
		silent := start(w, "aws", 3, 3)
		time.Sleep(2 * time.Minute)
		for _, m := range []*member{aws, gcp} {
			if got := m.alive(); !slices.Equal(got, []string{m.cfg.Node}) {
				t.Errorf("%s sees %v", m.cfg.Node, got)
			}
		}
		if len(silent.alive()) > 0 || silent.Problem() == nil {
			t.Errorf("without a key: sees %v, problem %v", silent.alive(), silent.Problem())
		}
		if err := silent.SetKeys([][]byte{key(1)}); err != nil {
			t.Fatal(err)
		}
		everybody(t, "with a key", 2, 15*time.Second, aws, silent)
		if err := silent.Problem(); err != nil {
			t.Error(err)
		}
		stop(aws, gcp, silent)
	})
}
