package apiserver

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

func TestNthAddress(t *testing.T) {
	for _, c := range []struct {
		prefix string
		n      uint16
		want   string
	}{
		{"10.255.0.0/24", 1, "10.255.0.1"},
		{"10.255.0.0/24", 254, "10.255.0.254"},
		{"10.255.0.0/24", 255, ""},
		{"10.255.0.0/24", 300, ""},
		{"10.254.0.0/15", 65535, "10.254.255.255"},
		{"10.255.0.128/25", 3, "10.255.0.131"},
		{"10.255.255.0/24", 3, "10.255.255.3"},
		{"fd00:9::/64", 65535, "fd00:9::ffff"},
		{"fd00:9::/120", 255, ""},
		{"10.0.0.1/32", 1, ""},
	} {
		got, ok := nthAddress(netip.MustParsePrefix(c.prefix), c.n)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s, %d: %v %v, want %q", c.prefix, c.n, got, ok, c.want)
		}
	}
}

func chainedNode(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} // its CNI has no prefixes for nodes
}

func chainedPod(name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("u" + name), Labels: map[string]string{"app": "x"}}, Spec: corev1.PodSpec{NodeName: node}}
}

// chainedCluster has nodes n1 and n2 and pods a, b on n1 and c on n2, and a slice of
// a service that names an address before any agent has.
func chainedCluster() *staticSource {
	s := &staticSource{changes: make(chan Objects, 8)}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.7.3.9"}}}}
	s.changes <- Objects{Complete: true, At: time.Now(), Upserts: map[Ref]runtime.Object{
		{KindNode, "", "n1"}:   chainedNode("n1"),
		{KindNode, "", "n2"}:   chainedNode("n2"),
		{KindPod, "shop", "a"}: chainedPod("a", "n1"),
		{KindPod, "shop", "b"}: chainedPod("b", "n1"),
		{KindPod, "shop", "c"}: chainedPod("c", "n2"),
		{KindService, "shop", "s"}: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", Annotations: map[string]string{AnnotationGlobal: "true"}},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}},
		{KindEndpointSlice, "shop", "s-1"}: slice,
	}}
	return s
}

func startChained(t *testing.T, source Source) *publishing {
	return startPublishing(t, Config{Source: source, SlicesGiven: true, PodPrefixes: prefixList("10.7.0.0/16"), TunnelPrefixes: prefixList("10.255.0.0/24")}, kvstore.NewMemory(kvstore.MemoryOptions{}))
}

func registerChained(t *testing.T, p *publishing, node string) *clustermesh.Node {
	t.Helper()
	var n *clustermesh.Node
	key := [32]byte{1}
	copy(key[1:], node)
	eventually(t, "node registered", func() (done bool) {
		var err error
		n, err = p.registry.RegisterNode(t.Context(), NodeRegistration{Node: node, WireGuardKey: key})
		return err == nil
	})
	return n
}

// A node's prefixes are its tunnel address and what its agent says of its pods, as
// they come and go.
func TestChainedNodes(t *testing.T) {
	source := chainedCluster()
	p := startChained(t, source)
	n1, n2 := registerChained(t, p, "n1"), registerChained(t, p, "n2")
	for _, n := range []*clustermesh.Node{n1, n2} {
		want := netip.AddrFrom4([4]byte{10, 255, 0, byte(n.Number)})
		if len(n.TunnelAddresses) != 1 || n.TunnelAddresses[0] != want || len(n.PodPrefixes) != 1 || n.PodPrefixes[0] != netip.PrefixFrom(want, 32) {
			t.Fatalf("the answer to node %s: %+v", n.Name, n)
		}
	}
	pod := func(node, name string, addrs ...string) error {
		_, err := p.registry.RegisterEndpoint(t.Context(), EndpointRegistration{Node: node, Namespace: "shop", Pod: name, Owner: "u" + name, Addresses: addrList(addrs...), Ready: true})
		return err
	}
	published := func(node, want string) {
		t.Helper()
		want += " wireguard"
		eventually(t, node+" has "+want, func() bool {
			return strings.Contains(dumpStore(p.store, "export/aws/node/"+node), want)
		})
	}
	own := func(n *clustermesh.Node) string { return "pods=" + n.PodPrefixes[0].String() }
	published("n1", own(n1))
	if err := pod("n1", "a", "10.7.3.9"); err != nil {
		t.Fatal(err)
	}
	published("n1", own(n1)+",10.7.3.9/32")
	// The slice that named it first knows its node now, for other clusters, too.
	eventually(t, "the endpoint has its node", func() bool {
		return strings.Contains(dumpStore(p.store, "export/aws/endpointslice/"), fmt.Sprintf("10.7.3.9@%d", n1.Number))
	})
	if err := pod("n1", "b", "10.7.200.1"); err != nil {
		t.Fatal(err)
	}
	published("n1", own(n1)+",10.7.3.9/32,10.7.200.1/32")

	// Nothing outside of the cluster's prefixes, and no other node's pod's address.
	for _, bad := range []struct{ addr, why string }{
		{"10.8.0.1", "outside the cluster's pod prefixes"},
		{"10.255.0.9", "outside the cluster's pod prefixes"},
		{"10.7.3.9", "is the address of pod shop/a on node n1"},
	} {
		if err := pod("n2", "c", bad.addr); err == nil || !strings.Contains(err.Error(), bad.why) {
			t.Errorf("%s: %v", bad.addr, err)
		}
	}
	// The address moves: its first pod is gone.
	if _, err := p.registry.RegisterEndpoint(t.Context(), EndpointRegistration{Node: "n1", Namespace: "shop", Pod: "a", Owner: "ua", Remove: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other node takes it", func() bool { return pod("n2", "c", "10.7.3.9") == nil })
	published("n1", own(n1)+",10.7.200.1/32")
	published("n2", own(n2)+",10.7.3.9/32")
	eventually(t, "the endpoint has its new node", func() bool {
		return strings.Contains(dumpStore(p.store, "export/aws/endpointslice/"), fmt.Sprintf("10.7.3.9@%d", n2.Number))
	})
	// A pod that is gone from the source has no address, whatever its node says.
	source.changes <- Objects{Deletes: []Ref{{KindPod, "shop", "b"}}, At: time.Now()}
	published("n1", own(n1))
	if c := markerOf(t, p.store); c == nil || fmt.Sprint(c.PodPrefixes) != "[10.7.0.0/16 10.255.0.0/24]" {
		t.Errorf("the cluster says %+v", c)
	}
}

// Many pods at once are few records of their node.
func TestChainedPace(t *testing.T) {
	source := chainedCluster()
	p := startChained(t, source)
	registerChained(t, p, "n1")
	const pods = 110
	o := Objects{Upserts: map[Ref]runtime.Object{}, At: time.Now()}
	for i := range pods {
		name := fmt.Sprint("p", i)
		o.Upserts[Ref{KindPod, "shop", name}] = chainedPod(name, "n1")
	}
	source.changes <- o
	key := clustermesh.KeyOf(clustermesh.ScopeExport, "aws", &clustermesh.Node{Name: "n1"}).String()
	eventually(t, "the node is there", func() bool { kv, err := getKey(t.Context(), p.store, key); return err == nil && kv.Key != "" })
	began, writes, rev := time.Now(), 0, int64(0)
	count := func() {
		if kv, err := getKey(t.Context(), p.store, key); err == nil && kv.ModRevision != rev {
			rev = kv.ModRevision
			writes++
		}
	}
	count()
	for i := range pods {
		r := EndpointRegistration{Node: "n1", Namespace: "shop", Pod: fmt.Sprint("p", i), Owner: fmt.Sprint("up", i), Ready: true, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 7, 1, byte(i)})}}
		eventually(t, "pod registered", func() bool { _, err := p.registry.RegisterEndpoint(t.Context(), r); return err == nil })
		count()
	}
	eventually(t, "all are in the record", func() bool {
		count()
		return strings.Count(dumpStore(p.store, "export/aws/node/n1"), "10.7.1.") == pods
	})
	if most := 4 + int(time.Since(began)/placedPace); writes > most {
		t.Errorf("%d records in %s, at most %d were expected", writes, time.Since(began), most)
	}
}

// A node whose number does not fit is refused, with what to change.
func TestChainedRoom(t *testing.T) {
	r := newDeriveRig()
	r.d.cfg.Tunnels = prefixList("10.255.0.0/30")
	for i := range 5 {
		r.d.setNode(fmt.Sprint("n", i), chainedNode(fmt.Sprint("n", i)), 1)
	}
	r.flush()
	n := strings.Count(r.dump(t), "export/aws/node/")
	if text := fmt.Sprint(r.d.problems()); n != 2 || strings.Count(text, "has no room for node number") != 3 {
		t.Errorf("%d nodes published: %s", n, text)
	}
}

func TestChainedConfig(t *testing.T) {
	for _, c := range []struct{ pods, tunnels, want string }{
		{"10.7.0.0/16", "10.255.0.0/24", ""},
		{"10.7.0.0/16 fd00:7::/32", "10.255.0.0/24 fd00:9::/64", ""},
		{"", "10.255.0.0/24", "needs --pod-prefix"},
		{"10.7.0.0/16", "10.255.0.1/24", "bits set"},
		{"10.7.0.0/16", "10.7.9.0/24", "overlaps --pod-prefix"},
		{"10.7.0.0/16", "10.254.0.0/24 10.255.0.0/24", "of one family"},
		{"10.7.0.0/16 fd00:7::/32", "10.255.0.0/24", "none of the family"},
	} {
		cfg := Config{PodPrefixes: prefixList(strings.Fields(c.pods)...), TunnelPrefixes: prefixList(strings.Fields(c.tunnels)...)}
		err := cfg.validatePrefixes()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v", c.pods, c.tunnels, err)
		}
	}
}
