package agent_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// A state is what all clusters say: by cluster and key. The harness below runs a
// list of them in many orders; where the agent ends up may depend on the last
// state alone.
type state map[string]map[string]clustermesh.Record

func said(records ...func(state)) state {
	s := state{}
	for _, f := range []agenttest.Facts{aws, gcp} {
		says(f, export, f.Cluster(uint64(f.ID)))(s)
	}
	for _, r := range records {
		r(s)
	}
	return s
}

func says(f agenttest.Facts, scope clustermesh.Scope, records ...clustermesh.Record) func(state) {
	return func(s state) {
		if s[f.Name] == nil {
			s[f.Name] = map[string]clustermesh.Record{}
		}
		for _, r := range records {
			s[f.Name][clustermesh.KeyOf(scope, f.Name, r).String()] = r
		}
	}
}

// with changes a record that a helper made.
func with[R any](r *R, change func(*R)) *R {
	change(r)
	return r
}

// reached is a service that is reached from outside in every way.
func reached(s *clustermesh.Service, local bool) *clustermesh.Service {
	s.Ports[0].NodePort, s.ExternalLocal, s.InternalLocal = 30080, local, local
	s.Outside = &clustermesh.Outside{Addresses: []clustermesh.External{{Address: netip.MustParseAddr("203.0.113.1"), Kind: clustermesh.ExternalLoadBalancer}},
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}
	return s
}

func statesUnderTest() []state {
	self := says(aws, export, aws.Node(1))
	peer := says(aws, local, gcp.Peer())
	late := clustermesh.OriginAt(time.Unix(2000, 0))
	moved := func(n int, o clustermesh.Origin) *clustermesh.Address {
		// Pod 10 of node 1, said by node n: a pod that moved with its address.
		return with(gcp.Address(1, 10, uint32(n)), func(a *clustermesh.Address) { a.Name.Node, a.Origin = gcp.NodeName(n), o })
	}
	// Node n, whose prefixes are its tunnel address and pods of node 1's prefix.
	singly := func(n int, pods ...int) *clustermesh.Node {
		return with(gcp.Node(n), func(r *clustermesh.Node) {
			r.PodPrefixes = nil
			for _, a := range r.TunnelAddresses {
				r.PodPrefixes = append(r.PodPrefixes, netip.PrefixFrom(a, a.BitLen()))
			}
			for _, p := range pods {
				r.PodPrefixes = append(r.PodPrefixes, gcp.Address(1, p, 5).Name.Prefix)
			}
		})
	}
	return []state{
		said(self),
		said(self, peer, says(gcp, export, gcp.Node(1), gcp.Address(1, 10, 5))),
		said(self, peer, says(gcp, export, gcp.Node(1), gcp.Node(2), moved(1, 1), moved(2, late))),
		said(self, peer, says(gcp, export, gcp.Node(1), gcp.Node(2), moved(1, late), moved(2, 1))),
		said(self, peer, says(gcp, export, gcp.Node(1), moved(1, 1), moved(2, late))),                                                                                       // node 2 is not known
		said(self, peer, says(gcp, export, with(gcp.Node(1), func(n *clustermesh.Node) { n.Number = 7 }), gcp.Address(1, 10, 5))),                                           // another number
		said(self, peer, says(gcp, export, with(gcp.Node(1), func(n *clustermesh.Node) { n.WireGuardKey = [32]byte{} }), gcp.Address(1, 10, 5))),                            // not registered
		said(self, peer, says(gcp, export, with(gcp.Node(1), func(n *clustermesh.Node) { n.WireGuardKey[5] = 9 }), gcp.Address(1, 10, 5))),                                  // another key
		said(self, peer, says(gcp, export, gcp.Node(1), with(gcp.Node(2), func(n *clustermesh.Node) { n.PodPrefixes = gcp.Node(1).PodPrefixes; n.TunnelAddresses = nil }))), // one prefix twice
		said(self, peer, says(gcp, export, gcp.Node(1), gcp.Address(1, 1, 5))),                                                                                              // a record of a tunnel address
		said(self, peer, says(gcp, export, singly(1, 10, 11), singly(2), gcp.Address(1, 10, 5), gcp.Address(1, 11, 5))),                                                     // another CNI in charge there
		said(self, peer, says(gcp, export, singly(1, 11), singly(2, 10), gcp.Address(1, 11, 5), moved(2, late))),
		said(self, says(aws, export, aws.Service("s", 1), aws.Slice("s", [2]int{1, 10}))),
		said(self, peer, says(aws, export, aws.Service("s", 1)), says(gcp, export, gcp.Node(1), gcp.Service("s", 1), gcp.Slice("s", [2]int{1, 10}, [2]int{1, 11}))),
		said(self, peer, says(aws, export, aws.Service("s", 1), aws.Slice("s", [2]int{1, 10}), aws.Service("t", 1), aws.Slice("t", [2]int{1, 10})), // one frontend twice
			says(gcp, export, gcp.Service("s", 1), gcp.Slice("s", [2]int{1, 10}))),
		said(self, peer, says(aws, local, with(aws.Service("s", 1), func(s *clustermesh.Service) { s.Global = false }), aws.Slice("s", [2]int{1, 12})),
			says(gcp, export, gcp.Service("s", 1), gcp.Slice("s", [2]int{1, 10}))),
		said(says(aws, export, aws.Node(2)), peer, says(gcp, export, gcp.Node(1))), // this node is not registered
		// From outside, by traffic policy and hints; then another service with the same frontends, of lesser and of higher kind.
		said(self, peer, says(aws, export, aws.Node(2), reached(aws.Service("s", 1), false), aws.Slice("s", [2]int{1, 10}, [2]int{2, 10})), says(gcp, export, gcp.Node(1), gcp.Service("s", 1), gcp.Slice("s", [2]int{1, 10}))),
		said(self, says(aws, export, aws.Node(2), reached(aws.Service("s", 1), true), aws.Slice("s", [2]int{1, 10}, [2]int{1, 11}, [2]int{2, 10}))),
		said(self, says(aws, export, reached(aws.Service("s", 1), true), aws.Slice("s", [2]int{2, 10}),
			with(reached(aws.Service("r", 2), false), func(s *clustermesh.Service) { s.Outside.Addresses[0].Kind = clustermesh.ExternalIP }), aws.Slice("r", [2]int{1, 10}))),
		said(self, says(aws, export, reached(aws.Service("s", 1), false), aws.Slice("s", [2]int{2, 10}),
			with(aws.Service("t", 2), func(s *clustermesh.Service) { s.Frontends[0] = netip.MustParseAddr("203.0.113.1") }), aws.Slice("t", [2]int{1, 10}))),
		said(says(aws, export, with(aws.Node(1), func(n *clustermesh.Node) {
			n.Zone = "b"
			n.UnderlayAddresses = append(n.UnderlayAddresses, netip.MustParseAddr("192.0.2.9"))
		})),
			says(aws, export, reached(aws.Service("s", 1), false), with(aws.Slice("s", [2]int{1, 10}, [2]int{2, 10}), func(s *clustermesh.EndpointSlice) {
				s.Endpoints[0].Hints, s.Endpoints[1].Hints = clustermesh.MakeHints([]string{"a"}, nil), clustermesh.MakeHints([]string{"b"}, nil)
			}))),
		// Imports: of what both clusters export, of what the other alone does, of what nobody does any more, of another service.
		said(self, peer, says(aws, export, exported(aws.Service("s", 1)), aws.Slice("s", [2]int{1, 10})), says(aws, local, importing(aws.Service("d", 3), "s")),
			says(gcp, export, gcp.Node(1), exported(gcp.Service("s", 1)), gcp.Slice("s", [2]int{1, 10}))),
		said(self, peer, says(aws, local, importing(aws.Service("d", 3), "s")), says(gcp, export, gcp.Node(1), exported(gcp.Service("s", 1)), gcp.Slice("s", [2]int{1, 11}))),
		said(self, peer, says(aws, local, importing(aws.Service("d", 3), "s")), says(gcp, export, gcp.Node(1))),
		said(self, peer, says(aws, local, importing(aws.Service("d", 3), "t")),
			says(gcp, export, gcp.Node(1), exported(gcp.Service("s", 1)), gcp.Slice("s", [2]int{1, 11}), exported(gcp.Service("t", 1)), gcp.Slice("t", [2]int{1, 12}))),
		// Gateways: another node is one, this one is, the other cluster has one.
		said(self, peer, gateways(aws), says(aws, export, gateway(aws.Node(2)), aws.Node(3), aws.Address(2, 10, 5)), says(gcp, export, gcp.Node(1), gcp.Address(1, 10, 5))),
		said(peer, gateways(aws), says(aws, export, gateway(aws.Node(1)), aws.Node(2), aws.Address(2, 10, 5)), says(gcp, export, gcp.Node(1), gcp.Address(1, 10, 5))),
		said(self, peer, gateways(gcp), says(gcp, export, gateway(gcp.Node(1)), gcp.Node(2), gcp.Address(2, 10, 5))),
		said(self, peer, gateways(gcp), says(gcp, export, gcp.Node(2), gcp.Address(2, 10, 5))), // and none in it
	}
}

// gateways is a cluster with gateways, gateway a node that is one.
func gateways(f agenttest.Facts) func(state) {
	return says(f, export, with(f.Cluster(uint64(f.ID)), func(c *clustermesh.Cluster) { c.Topology = clustermesh.TopologyGateway }))
}

func gateway(n *clustermesh.Node) *clustermesh.Node {
	n.Gateway = true
	return n
}

// exported is a service with a ServiceExport, and not global.
func exported(s *clustermesh.Service) *clustermesh.Service {
	s.Global, s.Export = false, &clustermesh.Export{Created: 1, IPv4: true}
	return s
}

// importing is the service whose frontends lead to the exporters of another.
func importing(s *clustermesh.Service, of string) *clustermesh.Service {
	s.Global, s.Import = false, of
	return s
}

// expander is one way through the states 0…n-1 that ends at state last.
type expander struct {
	name string
	path func(n, last int) []int // -1 = every cluster says nothing but itself
}

var expanders = []expander{
	{"alone", func(_, last int) []int { return []int{last} }},
	{"forwards", func(n, last int) []int {
		var p []int
		for i := range n {
			p = append(p, (last+1+i)%n)
		}
		return p
	}},
	{"backwards", func(n, last int) []int {
		var p []int
		for i := range n {
			p = append(p, (last+n-1-i)%n)
		}
		return append(p, last)
	}},
	{"doubled", func(n, last int) []int {
		var p []int
		for i := range n {
			p = append(p, (last+1+i)%n, (last+1+i)%n)
		}
		return p
	}},
	{"with empties between", func(n, last int) []int {
		var p []int
		for i := range n {
			p = append(p, -1, (last+1+i)%n)
		}
		return p
	}},
}

// delivery is how the agent hears of a change.
type delivery struct {
	name string
	wait bool // let the agent take every state in; otherwise states are squashed
	cut  bool // the connection is lost in between, so that whole lists arrive
	stop bool // the agent is restarted in between
}

var deliveries = []delivery{{"each", true, false, false}, {"squashed", false, false, false}, {"by list", true, true, false}, {"by restart", true, false, true}}

func TestStatesInEveryOrder(t *testing.T) {
	states := statesUnderTest()
	for last := range states {
		var want string
		for _, e := range expanders {
			for _, d := range deliveries {
				t.Run(fmt.Sprintf("%d/%s/%s", last, e.name, d.name), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						got := runStates(t, states, e.path(len(states), last), d)
						if want == "" {
							want = got
						}
						if got != want {
							t.Errorf("got\n%s\nwant, as by the first path,\n%s", got, want)
						}
					})
				})
			}
		}
	}
}

func runStates(t *testing.T, states []state, path []int, d delivery, pods ...agent.LocalPod) string {
	w := &world{t: t, mesh: agenttest.NewMesh(), tables: agent.NewFakes()}
	w.cfg = agent.Config{Cluster: "aws", ClusterID: 1, Node: "aws-n1", Connector: w.mesh, Resync: -1}
	now := state{}
	for _, f := range []agenttest.Facts{aws, gcp} {
		w.mesh.SetStore(f.Name, kvstore.NewMemory(kvstore.MemoryOptions{StoreID: uint64(f.ID), History: 4000}))
		now[f.Name] = map[string]clustermesh.Record{}
	}
	start := func() {
		w.start()
		if pods != nil {
			w.a.SetPods(pods)
		}
	}
	start()
	defer func() { w.stop() }()
	for _, i := range path {
		next := said()
		if i >= 0 {
			next = states[i]
		}
		if d.cut {
			w.mesh.Cut("aws", errors.New("cut"))
			w.mesh.Cut("gcp", errors.New("cut"))
		}
		if d.stop {
			w.stop()
		}
		for name := range now {
			w.become(name, now[name], next[name])
			if d.cut {
				s := w.mesh.Store(name)
				s.Compact(s.Position().Revision)
			}
		}
		now = next
		w.mesh.Cut("aws", nil)
		w.mesh.Cut("gcp", nil)
		if d.stop {
			start()
		}
		if d.wait {
			time.Sleep(2 * time.Minute)
			synctest.Wait()
		}
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	for _, table := range agent.TableNames() {
		w.expect(table, w.kernel(table)) // what the agent believes is so
	}
	return w.all()
}

// become makes a cluster say something else, one record at a time: deletes
// first, both in an order that is not the keys'.
func (w *world) become(name string, old, now map[string]clustermesh.Record) {
	var ops []kvstore.Op
	for _, key := range slices.Backward(slices.Sorted(maps.Keys(old))) {
		if now[key] == nil {
			ops = append(ops, kvstore.Delete(key))
		}
	}
	for _, key := range slices.Backward(slices.Sorted(maps.Keys(now))) {
		value, err := clustermesh.Encode(now[key])
		if err != nil {
			w.t.Fatal(err)
		}
		ops = append(ops, kvstore.Put(key, value, 0))
	}
	for _, op := range ops {
		if _, err := w.mesh.Store(name).Commit(context.Background(), op); err != nil {
			w.t.Fatal(err)
		}
	}
}
