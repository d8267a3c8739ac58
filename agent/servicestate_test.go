package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// stateRig is a state of cluster c1 on node n1 with tables in memory.
type stateRig struct {
	t *testing.T
	s *State
}

func newStateRig(t *testing.T, change func(*Config)) *stateRig {
	cfg := Config{Cluster: "c1", ClusterID: 1, Node: "n1"}
	if change != nil {
		change(&cfg)
	}
	r := &stateRig{t: t, s: newState(cfg, NewFakes())}
	for _, d := range r.s.t.all() {
		if _, err := d.Resync(1); err != nil {
			t.Fatal(err)
		}
	}
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
		v := clustermesh.NewView(clustermesh.Admission{Cluster: "c1", ID: 1, Local: true}, scope)
		if scope == clustermesh.ScopeExport {
			self := &clustermesh.Cluster{Name: "c1", ID: 1, Incarnation: 1}
			if err := v.Apply(clustermesh.Change{Key: clustermesh.KeyOf(scope, "c1", self), Record: self}); err != nil {
				t.Fatal(err)
			}
		}
		r.s.Apply(clustermesh.Update{Cluster: "c1", Scope: scope, View: v}, true)
	}
	r.put(rigNode("n1", 1, "a"), rigNode("n2", 2, "b"))
	return r
}

func rigNode(name string, number uint16, zone string) *clustermesh.Node {
	return &clustermesh.Node{Name: name, Number: number, Zone: zone, WireGuardKey: [32]byte{byte(number), 1},
		UnderlayAddresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(number)})},
		TunnelAddresses:   []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(number), 254})},
		PodPrefixes:       []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(number), 0}), 24)}}
}

func (r *stateRig) scope(rec clustermesh.Record) clustermesh.Scope {
	if _, is := rec.(*clustermesh.Workload); is {
		return clustermesh.ScopeLocal
	}
	return clustermesh.ScopeExport
}

func (r *stateRig) put(records ...clustermesh.Record) {
	r.t.Helper()
	for _, rec := range records {
		r.change(rec, rec)
	}
	finish(r.s)
}

func (r *stateRig) delete(records ...clustermesh.Record) {
	r.t.Helper()
	for _, rec := range records {
		r.change(rec, nil)
	}
	finish(r.s)
}

func (r *stateRig) change(at, rec clustermesh.Record) {
	r.t.Helper()
	scope := r.scope(at)
	for _, refused := range r.s.Apply(clustermesh.Update{Cluster: "c1", Scope: scope,
		Changes: []clustermesh.Change{{Key: clustermesh.KeyOf(scope, "c1", at), Record: rec}}}, true) {
		r.t.Fatal(refused)
	}
}

func rigService(name string, change func(*clustermesh.Service)) *clustermesh.Service {
	s := &clustermesh.Service{Name: clustermesh.ServiceName{Namespace: "shop", Name: name}, Global: true, Shared: true,
		Frontends: []netip.Addr{netip.MustParseAddr("172.20.0.1")}, Ports: []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 80}}}
	if change != nil {
		change(s)
	}
	return s
}

// rigSlice has endpoints as node:pod, with a ! for terminating, ~ for not ready.
func rigSlice(service string, proto clustermesh.Protocol, pods ...string) *clustermesh.EndpointSlice {
	s := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: clustermesh.ServiceName{Namespace: "shop", Name: service}, Slice: service + "-1"},
		Ports: []clustermesh.Port{{Name: "web", Protocol: proto, Port: 8080}}}
	for _, p := range pods {
		var node, pod byte
		word := strings.TrimRight(p, "!~")
		if _, err := fmt.Sscanf(word, "%d:%d", &node, &pod); err != nil {
			panic(err)
		}
		e := clustermesh.Endpoint{Address: netip.AddrFrom4([4]byte{10, 1, node, pod}), Node: uint16(node), Ready: true, Serving: true}
		switch p[len(word):] {
		case "!":
			e.Ready, e.Terminating = false, true
		case "~":
			e.Ready, e.Serving = false, false
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func rigAddress(node, pod byte) *clustermesh.Address {
	return &clustermesh.Address{Name: clustermesh.AddressName{Node: fmt.Sprint("n", node), Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, node, pod}), 32)},
		Identity: clustermesh.MakeIdentity(1, 5), Owner: fmt.Sprint("uid-", pod)}
}

// behind are the backends of a frontend, with the flags of its row.
func (r *stateRig) behind(frontend string) string {
	r.t.Helper()
	for k, row := range r.s.t.services.actualRows() {
		if k.String() != frontend {
			continue
		}
		out := fmt.Sprintf("flags=%d", row.Flags)
		for _, g := range groupsOf(&row) {
			for n := range g.Count {
				s, ok := r.s.t.slots.Actual(SlotKey{Service: row.ID, Cluster: g.Cluster, Slot: n})
				if !ok {
					r.t.Fatalf("%s: slot %d is missing", frontend, n)
				}
				out += " " + hostPort(s.Addr, s.Port)
			}
		}
		return out
	}
	return "none"
}

func (r *stateRig) expect(frontend, want string) {
	r.t.Helper()
	if got := r.behind(frontend); got != want {
		r.t.Errorf("%s: %s, want %s", frontend, got, want)
	}
}

func (r *stateRig) expectGone(want ...string) {
	r.t.Helper()
	var got []string
	for _, b := range r.s.takeGone() {
		got = append(got, b.String())
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("gone %v, want %v", got, want)
	}
}

// What a cluster gives out itself is not taken away by who names it.
func TestContestedFrontends(t *testing.T) {
	external := func(kind clustermesh.ExternalKind, addr string) func(*clustermesh.Service) {
		return func(s *clustermesh.Service) {
			s.Frontends = []netip.Addr{netip.MustParseAddr("172.20.0.9")}
			s.Outside = &clustermesh.Outside{Addresses: []clustermesh.External{{Address: netip.MustParseAddr(addr), Kind: kind}}}
		}
	}
	const frontend = "172.20.0.1:80/tcp"
	thief, victim := rigService("a", external(clustermesh.ExternalIP, "172.20.0.1")), rigService("b", nil)
	balancer := rigService("c", external(clustermesh.ExternalLoadBalancer, "172.20.0.1"))
	balancer.Frontends[0] = netip.MustParseAddr("172.20.0.10")
	slices3 := []clustermesh.Record{rigSlice("a", clustermesh.TCP, "1:1"), rigSlice("b", clustermesh.TCP, "1:2"), rigSlice("c", clustermesh.TCP, "1:3")}
	for _, order := range [][]clustermesh.Record{{thief, victim, balancer}, {victim, balancer, thief}, {balancer, thief, victim}} {
		r := newStateRig(t, nil)
		r.put(slices3...)
		r.put(order...)
		r.expect(frontend, "flags=0 10.1.1.2:8080")
		r.expect(frontend+"/outside", "flags=0 10.1.1.3:8080") // a ClusterIP has none: the load balancer comes first
		if p := r.s.Problems(); len(p) != 2 || !strings.Contains(p[0].What, "service shop/b (ClusterIP), service shop/c (load balancer), service shop/a (external IP)") {
			t.Errorf("problems %v", p)
		}
		r.delete(victim)
		r.expect(frontend, "flags=0 10.1.1.3:8080")
		r.delete(balancer)
		r.expect(frontend, "flags=0 10.1.1.1:8080")
		if p := r.s.Problems(); len(p) != 0 {
			t.Errorf("problems %v", p)
		}
		r.put(victim)
		r.expect(frontend, "flags=0 10.1.1.2:8080")
		// The holder's claim becomes a lesser one: the next takes over.
		r.put(balancer, rigService("b", external(clustermesh.ExternalIP, "172.20.0.1")))
		r.expect(frontend, "flags=0 10.1.1.3:8080")
		r.delete(thief, victim, balancer)
		r.expect(frontend, "none")
		if len(r.s.frontends)+len(r.s.contested)+len(r.s.uses)+len(r.s.services) != 0 {
			t.Errorf("left: %v %v %v %v", r.s.frontends, r.s.contested, r.s.uses, r.s.services)
		}
	}
}

func TestHostPorts(t *testing.T) {
	r := newStateRig(t, nil)
	pod := func(uid string, addrs ...string) LocalPod {
		p := LocalPod{UID: uid, Namespace: "shop", Name: uid, IfIndex: 7}
		for _, a := range addrs {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
		}
		return p
	}
	w := &clustermesh.Workload{Namespace: "shop", Name: "p", Node: "n1", Owner: "p",
		HostPorts: []clustermesh.HostPort{{Protocol: clustermesh.TCP, Port: 8443, ContainerPort: 443}, {Protocol: clustermesh.SCTP, Port: 99, ContainerPort: 9, Address: netip.MustParseAddr("192.0.2.1")},
			{Protocol: clustermesh.TCP, Port: 53, ContainerPort: 53, Address: netip.MustParseAddr("127.0.0.1")}}}
	r.put(w)
	r.expect("192.0.2.1:8443/tcp", "none") // no address yet
	r.s.SetPods([]LocalPod{pod("p", "10.1.1.5")})
	finish(r.s)
	for _, scope := range []string{"", "/outside"} {
		r.expect("192.0.2.1:8443/tcp"+scope, "flags=2 10.1.1.5:443")
		r.expect("10.1.1.254:8443/tcp"+scope, "flags=2 10.1.1.5:443") // of the node, by the tunnel
		r.expect("192.0.2.1:99/sctp"+scope, "flags=2 10.1.1.5:9")
		r.expect("10.1.1.254:99/sctp"+scope, "none")
		r.expect("127.0.0.1:53/tcp"+scope, "none")
	}
	if p := r.s.Problems(); len(p) != 1 || !strings.Contains(p[0].Why, "hostIP 127.0.0.1") {
		t.Errorf("problems %v", p)
	}
	// A node port comes first, and the pod gets the port when it is free.
	svc := rigService("s", func(s *clustermesh.Service) { s.Ports[0].NodePort = 8443 })
	r.put(svc, rigSlice("s", clustermesh.TCP, "2:2"))
	r.expect("192.0.2.1:8443/tcp", "flags=0 10.1.2.2:8080")
	r.expect("10.1.1.254:8443/tcp", "flags=2 10.1.1.5:443")
	r.delete(svc)
	r.expect("192.0.2.1:8443/tcp", "flags=2 10.1.1.5:443")
	// The pod is made anew, with another address; then with the node's network.
	r.s.SetPods([]LocalPod{pod("p", "10.1.1.6")})
	finish(r.s)
	r.expect("192.0.2.1:8443/tcp", "flags=2 10.1.1.6:443")
	hosted := *w
	hosted.HostNetwork = true
	r.put(&hosted)
	r.expect("192.0.2.1:8443/tcp", "none")
	r.put(w)
	r.expect("192.0.2.1:8443/tcp", "flags=2 10.1.1.6:443")
	elsewhere := *w
	elsewhere.Node = "n2"
	r.put(&elsewhere)
	r.expect("192.0.2.1:8443/tcp", "none")
	if len(r.s.frontends)+len(r.s.hosting) != 0 {
		t.Errorf("left: %v %v", r.s.frontends, r.s.hosting)
	}
}

// Rows of host ports stay over a restart until the pods of this node are known.
func TestHostPortsAreKeptUntilPodsAreKnown(t *testing.T) {
	before := newStateRig(t, nil)
	w := &clustermesh.Workload{Namespace: "shop", Name: "p", Node: "n1", Owner: "p", HostPorts: []clustermesh.HostPort{{Protocol: clustermesh.TCP, Port: 8443, ContainerPort: 443}}}
	pods := []LocalPod{{UID: "p", Namespace: "shop", Name: "p", Addresses: []netip.Addr{netip.MustParseAddr("10.1.1.5")}}}
	before.put(w)
	before.s.SetPods(pods)
	finish(before.s)
	before.expect("192.0.2.1:8443/tcp", "flags=2 10.1.1.5:443")

	after := newStateRig(t, nil)
	svc, slot := NewFake[ServiceKey, ServiceRow]("", 0), NewFake[SlotKey, SlotRow]("", 0)
	mustPut(t, svc, before.s.t.services.actualRows())
	mustPut(t, slot, before.s.t.slots.actualRows())
	after.s.t.services.table, after.s.t.slots.table = svc, slot
	resync(t, after.s.t.services)
	resync(t, after.s.t.slots)
	finish(after.s)
	after.expect("192.0.2.1:8443/tcp", "flags=2 10.1.1.5:443")
	after.s.SetPods(nil)
	finish(after.s)
	after.expect("192.0.2.1:8443/tcp", "none")
	if len(slot.Rows()) != 0 {
		t.Errorf("slots left: %v", slot.Rows())
	}
}

func mustPut[K comparable, V any](t *testing.T, f *Fake[K, V], rows map[K]V) {
	t.Helper()
	if err := f.Put(rows); err != nil {
		t.Fatal(err)
	}
}

func resync[K, V comparable](t *testing.T, d *Delta[K, V]) {
	t.Helper()
	for {
		done, err := d.Resync(MaxBatch)
		if err != nil {
			t.Fatal(err)
		}
		if done {
			return
		}
	}
}

// Another zone, number or address of this node is taken in by all services.
func TestServicesFollowTheNode(t *testing.T) {
	r := newStateRig(t, func(c *Config) { c.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	r.put(rigService("s", func(s *clustermesh.Service) { s.Ports[0].NodePort = 30080; s.ExternalLocal = true }))
	slice := rigSlice("s", clustermesh.TCP, "1:1", "2:2")
	for i, zone := range []string{"a", "b"} {
		slice.Endpoints[i].Hints = clustermesh.MakeHints([]string{zone}, nil)
	}
	r.put(slice)
	r.expect("172.20.0.1:80/tcp", "flags=0 10.1.1.1:8080")
	r.expect("192.0.2.1:30080/tcp", "flags=0 10.1.1.1:8080")
	r.expect("192.0.2.1:30080/tcp/outside", "flags=3 10.1.1.1:8080")
	n := rigNode("n1", 1, "b")
	n.UnderlayAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("198.51.100.1")}
	r.put(n)
	r.expect("172.20.0.1:80/tcp", "flags=0 10.1.2.2:8080")
	r.expect("192.0.2.77:30080/tcp/outside", "flags=3 10.1.1.1:8080")
	r.expect("192.0.2.1:30080/tcp", "none")
	r.expect("198.51.100.1:30080/tcp", "none") // not among the addresses for node ports
	r.delete(n)
	r.expect("172.20.0.1:80/tcp", "flags=0 10.1.1.1:8080 10.1.2.2:8080")
	r.expect("192.0.2.77:30080/tcp", "none")
}

func TestGoneBackends(t *testing.T) {
	tcp := func(t *testing.T) (*stateRig, *clustermesh.Service) {
		r := newStateRig(t, nil)
		s := rigService("s", nil)
		r.put(s, rigSlice("s", clustermesh.TCP, "1:1", "2:2"), rigAddress(1, 1), rigAddress(2, 2))
		return r, s
	}
	t.Run("deleted: told once its address is nobody's", func(t *testing.T) {
		r, _ := tcp(t)
		r.put(rigSlice("s", clustermesh.TCP, "1:1"))
		r.expectGone()
		r.delete(rigAddress(2, 2))
		r.expectGone("10.1.2.2:8080/tcp")
		r.expectGone()
	})
	t.Run("the address first", func(t *testing.T) {
		r, _ := tcp(t)
		r.delete(rigAddress(2, 2))
		r.expectGone()
		r.put(rigSlice("s", clustermesh.TCP, "1:1"))
		r.expectGone("10.1.2.2:8080/tcp")
	})
	t.Run("terminating: not before its end", func(t *testing.T) {
		r, _ := tcp(t)
		r.put(rigSlice("s", clustermesh.TCP, "1:1", "2:2!"))
		r.delete(rigAddress(2, 2))
		r.expectGone()
		r.put(rigSlice("s", clustermesh.TCP, "1:1"))
		r.expectGone("10.1.2.2:8080/tcp")
	})
	t.Run("ready again", func(t *testing.T) {
		r, _ := tcp(t)
		r.put(rigSlice("s", clustermesh.TCP, "1:1", "2:2~"))
		r.put(rigSlice("s", clustermesh.TCP, "1:1", "2:2"))
		r.delete(rigAddress(2, 2))
		r.expectGone()
		if r.s.gone.count != 0 || len(r.s.gone.services) != 0 {
			t.Errorf("still remembered: %+v", r.s.gone)
		}
	})
	t.Run("a service goes: what is there keeps its connections", func(t *testing.T) {
		r, s := tcp(t)
		r.delete(s, rigSlice("s", clustermesh.TCP))
		r.expectGone()
		r.delete(rigAddress(1, 1), rigAddress(2, 2))
		r.expectGone("10.1.1.1:8080/tcp", "10.1.2.2:8080/tcp")
	})
	t.Run("another service has it still", func(t *testing.T) {
		r, _ := tcp(t)
		r.put(rigService("t", func(s *clustermesh.Service) { s.Frontends[0] = netip.MustParseAddr("172.20.0.2") }), rigSlice("t", clustermesh.TCP, "2:2"))
		r.delete(rigAddress(2, 2))
		r.put(rigSlice("s", clustermesh.TCP, "1:1"))
		r.expectGone()
		r.put(rigSlice("t", clustermesh.TCP, "1:1"))
		r.expectGone("10.1.2.2:8080/tcp")
	})
	t.Run("UDP: once it does not serve", func(t *testing.T) {
		r := newStateRig(t, nil)
		r.put(rigService("s", func(s *clustermesh.Service) { s.Ports[0].Protocol = clustermesh.UDP }),
			rigSlice("s", clustermesh.UDP, "1:1", "2:2"), rigAddress(1, 1), rigAddress(2, 2))
		r.put(rigSlice("s", clustermesh.UDP, "1:1", "2:2!"))
		r.expectGone()
		r.put(rigSlice("s", clustermesh.UDP, "1:1", "2:2~"))
		r.expectGone("10.1.2.2:8080/udp")
	})
	t.Run("the node of one that terminates goes down", func(t *testing.T) {
		r, _ := tcp(t)
		r.put(rigSlice("s", clustermesh.TCP, "1:1", "2:2!", "2:3"), rigAddress(2, 3))
		on := func(number uint16) string {
			return fmt.Sprint(r.s.backendsOn(func(k NodeKey) bool { return k == NodeKey{1, number} }))
		}
		if got, want := on(2), "[10.1.2.2:8080/tcp 10.1.2.3:8080/tcp]"; got != want {
			t.Errorf("on node 2: %s, want %s", got, want)
		}
		r.put(rigSlice("s", clustermesh.TCP, "1:1")) // no endpoints, and there still
		if got, want := on(2), "[10.1.2.2:8080/tcp 10.1.2.3:8080/tcp]"; got != want {
			t.Errorf("on node 2: %s, want %s", got, want)
		}
		if got, want := on(1), "[10.1.1.1:8080/tcp]"; got != want {
			t.Errorf("on node 1: %s, want %s", got, want)
		}
		r.delete(rigAddress(2, 2), rigAddress(2, 3))
		if got, want := on(2), "[]"; got != want {
			t.Errorf("on node 2: %s, want %s", got, want)
		}
	})
	t.Run("not before its rows have left", func(t *testing.T) {
		r, _ := tcp(t)
		r.change(rigAddress(2, 2), nil)
		r.change(rigSlice("s", clustermesh.TCP, "1:1"), rigSlice("s", clustermesh.TCP, "1:1"))
		for r.s.Compute(turnServices) {
		}
		r.expectGone() // wanted, not written
		finish(r.s)
		r.expectGone("10.1.2.2:8080/tcp")
	})
}

func TestHealthPortChanges(t *testing.T) {
	r := newStateRig(t, nil)
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for _, p := range r.s.takeHealthPorts() {
			got = append(got, fmt.Sprintf("%s port %d: %d", p.Service, p.Port, p.Endpoints))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	s := rigService("s", func(s *clustermesh.Service) { s.ExternalLocal, s.HealthCheckPort = true, 32000 })
	r.put(s, rigSlice("s", clustermesh.TCP, "1:1", "2:2"))
	expect("shop/s port 32000: 1")
	r.put(rigSlice("s", clustermesh.TCP, "1:1", "2:2", "2:3"))
	expect()
	r.put(rigSlice("s", clustermesh.TCP, "1:1!", "2:2"))
	expect("shop/s port 32000: 0")
	r.put(rigService("s", func(s *clustermesh.Service) { s.HealthCheckPort = 32000 })) // no longer Local
	expect("shop/s port 0: 0")
	r.put(s)
	expect("shop/s port 32000: 0")
	r.delete(s)
	expect("shop/s port 0: 0")
	expect()
}

// Consistent tables that do not fit are left out, and made when there is room.
func TestConsistentTablesHaveBounds(t *testing.T) {
	r := newStateRig(t, func(c *Config) { c.MaglevRows = 3 })
	service := func(name string, port uint16) []clustermesh.Record {
		return []clustermesh.Record{rigService(name, func(s *clustermesh.Service) {
			s.Frontends[0] = netip.AddrFrom4([4]byte{172, 20, 0, byte(port)})
			s.Ports[0].NodePort = 30000 + port
		}), rigSlice(name, clustermesh.TCP, "1:1", "2:2")}
	}
	a, b := service("a", 1), service("b", 2)
	r.put(a...)
	r.put(b...)
	maglev := func(name string) uint16 {
		for _, row := range r.s.t.services.actualRows() {
			if row.ID == ServiceID(clustermesh.ServiceName{Namespace: "shop", Name: name}, "web", clustermesh.TCP, false) && row.Maglev > 0 {
				return row.Maglev
			}
		}
		return 0
	}
	if maglev("a") != 251 || maglev("b") != 0 || r.s.t.maglev.Len() != 2 {
		t.Fatalf("sizes %d and %d, %d rows", maglev("a"), maglev("b"), r.s.t.maglev.Len())
	}
	if p := r.s.Problems(); len(p) != 1 || !strings.Contains(p[0].What, "1 services have no consistent table") {
		t.Errorf("problems %v", p)
	}
	r.delete(a...)
	if maglev("b") != 251 || r.s.t.maglev.Len() != 2 || r.s.tables != 2 || len(r.s.Problems()) != 0 {
		t.Errorf("size %d, %d rows, %d counted, %v", maglev("b"), r.s.t.maglev.Len(), r.s.tables, r.s.Problems())
	}
	r.delete(b...)
	if r.s.t.maglev.Len()+r.s.tables != 0 {
		t.Errorf("%d rows, %d counted", r.s.t.maglev.Len(), r.s.tables)
	}
}

func TestSourceRangeRows(t *testing.T) {
	r := newStateRig(t, nil)
	s := rigService("s", func(s *clustermesh.Service) {
		s.Ports[0].NodePort = 30080
		s.Outside = &clustermesh.Outside{Addresses: []clustermesh.External{{Address: netip.MustParseAddr("203.0.113.1"), Kind: clustermesh.ExternalLoadBalancer},
			{Address: netip.MustParseAddr("203.0.113.2"), Kind: clustermesh.ExternalIP}}, SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}
	})
	r.put(s, rigSlice("s", clustermesh.TCP, "1:1"))
	r.expect("203.0.113.1:80/tcp/outside", "flags=4 10.1.1.1:8080")
	r.expect("203.0.113.2:80/tcp/outside", "flags=0 10.1.1.1:8080")
	r.expect("192.0.2.1:30080/tcp/outside", "flags=0 10.1.1.1:8080")
	k := RangeKey{ServiceID(s.Name, "web", clustermesh.TCP, false), MakePrefix(netip.MustParsePrefix("198.51.100.0/24"))}
	if row, ok := r.s.t.sourceRanges.Actual(k); !ok || !row.Allow || r.s.t.sourceRanges.Len() != 1 {
		t.Errorf("%v, want %v", r.s.t.sourceRanges.wanted, k)
	}
	r.delete(s)
	if r.s.t.sourceRanges.Len() != 0 {
		t.Errorf("left: %v", r.s.t.sourceRanges.wanted)
	}
}
