package apiserver

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// testState is one state of the world: what the source and the nodes say.
type testState struct {
	objects map[Ref]runtime.Object
	claims  map[objectName]*endpointClaim
	nodes   map[string]*nodeClaim
}

// deriveRig is a deriver with the store it writes to.
type deriveRig struct {
	d     *deriver
	store map[string][]byte
}

func newDeriveRig() *deriveRig {
	r := &deriveRig{store: make(map[string][]byte)}
	r.d = newDeriver(deriveConfig{
		Cluster: "aws", ID: 1, Bound: prefixList("10.1.0.0/16", "fd00:1::/32"),
		Identity: func(text string) uint32 {
			h := fnv.New32a()
			h.Write([]byte(text))
			return h.Sum32()>>12 | 1
		},
		NodeNumber: func(node string) uint16 { return uint16(node[len(node)-1]-'0') + 1 },
		Stored:     func(key string) []byte { return r.store[key] },
		StoredUnder: func(prefix string) []string {
			var keys []string
			for key := range r.store {
				if strings.HasPrefix(key, prefix) {
					keys = append(keys, key)
				}
			}
			return keys
		},
	})
	return r
}

// step brings the deriver to a state, by differences or by a whole list, and the
// store after it.
func (r *deriveRig) step(s testState, whole bool) {
	o := Objects{Complete: whole, Upserts: s.objects, At: time.Unix(1, 0)}
	if !whole {
		for _, ref := range r.d.refs() {
			if _, still := s.objects[ref]; !still {
				o.Deletes = append(o.Deletes, ref)
			}
		}
	}
	r.d.apply(o)
	for pod := range r.d.claims {
		if s.claims[pod] == nil {
			r.d.setEndpointClaim(pod, nil, 1)
		}
	}
	for pod, c := range s.claims {
		r.d.setEndpointClaim(pod, c, 1)
	}
	for node := range r.d.nodeClaims {
		if s.nodes[node] == nil {
			r.d.setNodeClaim(node, nil, 1)
		}
	}
	for node, c := range s.nodes {
		r.d.setNodeClaim(node, c, 1)
	}
	for text := range r.d.podsByText {
		r.d.touchIdentity(text, 1)
	}
	r.flush()
}

func (r *deriveRig) flush() {
	r.d.flush(func(key string, value []byte) {
		if value == nil {
			delete(r.store, key)
			return
		}
		r.store[key] = value
	})
}

// records is what is published, decoded. Identities are left out: they outlive
// their pods until their number is freed.
func (r *deriveRig) records(t interface{ Fatal(...any) }) map[clustermesh.Key]clustermesh.Record {
	all := make(map[clustermesh.Key]clustermesh.Record)
	for text, value := range r.store {
		key, err := clustermesh.ParseKey(text)
		if err != nil {
			t.Fatal(err)
		}
		if key.Kind == clustermesh.KindIdentity {
			continue
		}
		rec, err := clustermesh.Decode(key, value)
		if err != nil {
			t.Fatal(err)
		}
		all[key] = rec
	}
	return all
}

func (r *deriveRig) dump(t interface{ Fatal(...any) }) string { return clustermesh.Dump(r.records(t)) }

// genState draws a state from a small world, so that things meet.
func genState(t *rapid.T) testState {
	s := testState{objects: make(map[Ref]runtime.Object), claims: make(map[objectName]*endpointClaim), nodes: make(map[string]*nodeClaim)}
	for i := range 3 {
		if rapid.IntRange(0, 4).Draw(t, "node") == 0 {
			continue
		}
		name := fmt.Sprint("n", i)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: rapid.SampledFrom([]string{"", "z1"}).Draw(t, "zone")}}}
		node.Spec.PodCIDRs = []string{fmt.Sprintf("10.1.%d.0/24", i), fmt.Sprintf("fd00:1:%d::/64", i)}
		s.objects[Ref{KindNode, "", name}] = node
		if rapid.Bool().Draw(t, "registered") {
			s.nodes[name] = &nodeClaim{key: [32]byte{byte(i + 1)}, endpoint: "192.0.2.1:51820"}
		}
	}
	for i := range 8 {
		genPod(t, s, i)
	}
	for i := range 3 {
		if rapid.IntRange(0, 3).Draw(t, "service") == 0 {
			continue
		}
		name := fmt.Sprint("s", i)
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		svc.Spec.Selector = rapid.SampledFrom([]map[string]string{nil, {"app": "a"}, {"app": "b"}, {"app": "a", "tier": "x"}}).Draw(t, "selector")
		svc.Spec.Ports = []corev1.ServicePort{{Name: "web", Port: 80, TargetPort: rapid.SampledFrom([]intstr.IntOrString{{}, intstr.FromInt32(8080), intstr.FromString("http")}).Draw(t, "target")}}
		svc.Spec.PublishNotReadyAddresses = rapid.Bool().Draw(t, "publishNotReady")
		svc.Spec.TrafficDistribution = rapid.SampledFrom([]*string{nil, nil, new(corev1.ServiceTrafficDistributionPreferClose), new(corev1.ServiceTrafficDistributionPreferSameNode)}).Draw(t, "distribution")
		svc.Annotations = rapid.SampledFrom([]map[string]string{nil, {AnnotationGlobal: "true"}, {AnnotationGlobal: "true", AnnotationShared: "false"}}).Draw(t, "annotations")
		s.objects[Ref{KindService, "shop", name}] = svc
	}
	if rapid.Bool().Draw(t, "policy") {
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "np"}}
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(rapid.SampledFrom([]int32{53, 80}).Draw(t, "policyPort")))}}}}
		s.objects[Ref{KindNetworkPolicy, "shop", "np"}] = p
	}
	if rapid.Bool().Draw(t, "clusterPolicy") {
		p := &clusterPolicy{ClusterNetworkPolicy: &v1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "cnp"}}}
		p.Spec.Tier, p.Spec.Subject.Namespaces = v1alpha2.AdminTier, &metav1.LabelSelector{}
		p.Spec.Priority = rapid.Int32Range(0, 1).Draw(t, "priority")
		s.objects[Ref{KindClusterNetworkPolicy, "", "cnp"}] = p
	}
	if rapid.Bool().Draw(t, "namespace") {
		s.objects[Ref{KindNamespace, "", "shop"}] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "x"}}}
	}
	return s
}

func genPod(t *rapid.T, s testState, i int) {
	if rapid.IntRange(0, 3).Draw(t, "pod") == 0 {
		return
	}
	name := objectName{"shop", fmt.Sprint("p", i)}
	node := rapid.IntRange(0, 2).Draw(t, "podNode")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
	pod.Labels = rapid.SampledFrom([]map[string]string{nil, {"app": "a"}, {"app": "b"}, {"app": "a", "tier": "x"}}).Draw(t, "labels")
	pod.Spec.NodeName = fmt.Sprint("n", node)
	pod.Spec.HostNetwork = rapid.IntRange(0, 9).Draw(t, "host") == 0
	pod.Spec.Containers = []corev1.Container{{Name: "c"}}
	if rapid.Bool().Draw(t, "named") {
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: rapid.SampledFrom([]int32{8080, 9090}).Draw(t, "containerPort")}}
	}
	if rapid.IntRange(0, 5).Draw(t, "going") == 0 {
		pod.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	}
	s.objects[Ref{KindPod, name.Namespace, name.Name}] = pod
	if rapid.IntRange(0, 3).Draw(t, "claimed") > 0 {
		claimNode := rapid.SampledFrom([]int{node, node, node, 0}).Draw(t, "claimNode")
		s.claims[name] = &endpointClaim{
			node: fmt.Sprint("n", claimNode), owner: "u" + name.Name, ready: rapid.Bool().Draw(t, "ready"), origin: clustermesh.Origin(i + 1),
			addresses: []netip.Addr{
				netip.MustParseAddr(fmt.Sprintf("10.1.%d.%d", claimNode, rapid.IntRange(1, 12).Draw(t, "last"))),
				netip.MustParseAddr(fmt.Sprintf("fd00:1:%d::%d", claimNode, i+2)),
			},
		}
	}
}

// Whatever way a state is reached, what is published is what a fresh start would
// publish, and its endpoints are those of the slow obvious twin.
func TestDeriveStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		states := make([]testState, rapid.IntRange(1, 4).Draw(t, "states"))
		want := make([]string, len(states))
		for i := range states {
			states[i] = genState(t)
			fresh := newDeriveRig()
			fresh.step(states[i], true)
			want[i] = fresh.dump(t)
			checkTwin(t, states[i], fresh.records(t))
		}
		empty := testState{}
		for _, way := range []struct {
			name     string
			order    func(n int) []int // -1 = the empty state
			whole    bool
			squashed bool
		}{
			{name: "forwards", order: forwards},
			{name: "forwards by lists", order: forwards, whole: true},
			{name: "backwards", order: func(n int) []int { o := forwards(n); slices.Reverse(o); return o }},
			{name: "doubled", order: func(n int) (o []int) {
				for i := range n {
					o = append(o, i, i)
				}
				return o
			}},
			{name: "with empties between", order: func(n int) (o []int) {
				for i := range n {
					o = append(o, i, -1)
				}
				return append(o, n-1)
			}},
			{name: "squashed", order: forwards, squashed: true},
		} {
			rig := newDeriveRig()
			for at, i := range way.order(len(states)) {
				s, expected := empty, ""
				if i >= 0 {
					s, expected = states[i], want[i]
				}
				last := at == len(way.order(len(states)))-1
				if way.squashed && !last {
					rig.stepWithoutFlush(s)
					continue
				}
				rig.step(s, way.whole)
				if got := rig.dump(t); got != expected {
					t.Fatalf("%s, step %d (state %d):\n%s\nexpected:\n%s", way.name, at, i, got, expected)
				}
			}
		}
	})
}

func forwards(n int) []int {
	var o []int
	for i := range n {
		o = append(o, i)
	}
	return o
}

func (r *deriveRig) stepWithoutFlush(s testState) {
	r.d.apply(Objects{Complete: true, Upserts: s.objects, At: time.Unix(1, 0)})
	for pod, c := range s.claims {
		r.d.setEndpointClaim(pod, c, 1)
	}
	for node, c := range s.nodes {
		r.d.setNodeClaim(node, c, 1)
	}
}

// checkTwin compares the endpoints of each service with a plain search through
// everything.
func checkTwin(t *rapid.T, s testState, records map[clustermesh.Key]clustermesh.Record) {
	prefixOf := make(map[string][]netip.Prefix)
	for _, i := range []int{0, 1, 2} {
		name := fmt.Sprint("n", i)
		node, _ := s.objects[Ref{KindNode, "", name}].(*corev1.Node)
		if node == nil {
			continue
		}
		prefixOf[name] = prefixList(node.Spec.PodCIDRs...)
	}
	newest := make(map[netip.Addr]objectName)
	for _, name := range slices.SortedFunc(maps.Keys(s.claims), func(a, b objectName) int { return int(s.claims[a].origin - s.claims[b].origin) }) {
		for _, a := range s.claims[name].addresses {
			newest[a] = name
		}
	}
	want := make(map[string]bool)
	for ref, obj := range s.objects {
		svc, ok := obj.(*corev1.Service)
		if !ok || len(svc.Spec.Selector) == 0 {
			continue
		}
		for podRef, podObj := range s.objects {
			pod, ok := podObj.(*corev1.Pod)
			if !ok {
				continue
			}
			match := true
			for k, v := range svc.Spec.Selector {
				match = match && pod.Labels[k] == v
			}
			port := int32(80)
			switch tp := svc.Spec.Ports[0].TargetPort; {
			case tp.Type == intstr.String:
				port = 0
				for _, p := range pod.Spec.Containers[0].Ports {
					port = p.ContainerPort
				}
			case tp.IntVal != 0:
				port = tp.IntVal
			}
			ps := prefixOf[pod.Spec.NodeName]
			if !match || port == 0 || ps == nil {
				continue
			}
			claim := s.claims[objectName{podRef.Namespace, podRef.Name}]
			var addrs []netip.Addr
			ready := false
			if pod.Spec.HostNetwork {
				if s.nodes[pod.Spec.NodeName] == nil {
					continue
				}
				addrs = []netip.Addr{ps[0].Addr().Next(), ps[1].Addr().Next()}
				ready = claim == nil || claim.node != pod.Spec.NodeName || claim.ready
			} else if claim != nil && claim.node == pod.Spec.NodeName {
				for i, a := range claim.addresses {
					if ps[i].Contains(a) && a != ps[i].Addr().Next() && newest[a] == (objectName{podRef.Namespace, podRef.Name}) {
						addrs = append(addrs, a)
					}
				}
				ready = claim.ready
			}
			going := pod.DeletionTimestamp != nil
			for _, a := range addrs {
				usable := ready && !going || svc.Spec.PublishNotReadyAddresses
				hints := ""
				if prefer := svc.Spec.TrafficDistribution; prefer != nil && usable {
					if z := s.objects[Ref{KindNode, "", pod.Spec.NodeName}].(*corev1.Node).Labels[corev1.LabelTopologyZone]; z != "" {
						hints += ">zone:" + z
					}
					if *prefer == corev1.ServiceTrafficDistributionPreferSameNode {
						hints += fmt.Sprintf(">node:%d", pod.Spec.NodeName[1]-'0'+1)
					}
				}
				want[fmt.Sprintf("%s %s:%d %s %v %v %v%s", ref.Name, a, port, pod.Spec.NodeName, usable, ready, going, hints)] = true
			}
		}
	}
	// Two pods on their node's network share an address: one endpoint stands for
	// both, so only the address is compared there.
	got := make(map[string]bool)
	for key, rec := range records {
		slice, ok := rec.(*clustermesh.EndpointSlice)
		if !ok {
			continue
		}
		svc := records[clustermesh.Key{Scope: key.Scope, Cluster: "aws", Kind: clustermesh.KindService, Name: slice.Name.Service.String()}]
		if svc == nil {
			t.Fatalf("%s has no service in its scope", key)
		}
		for _, e := range slice.Endpoints {
			if e.Address.Is4() != slice.Endpoints[0].Address.Is4() {
				t.Fatalf("%s has two families", key)
			}
			got[fmt.Sprintf("%s %s:%d n%d %v %v %v%v", slice.Name.Service.Name, e.Address, slice.Ports[0].Port, e.Node-1, e.Ready, e.Serving, e.Terminating, e.Hints)] = true
		}
	}
	for e := range got {
		if !want[e] {
			t.Fatalf("endpoint %q should not be; expected %v", e, slices.Sorted(maps.Keys(want)))
		}
	}
	for e := range want {
		if got[e] {
			continue
		}
		address := strings.Join(strings.Fields(e)[:2], " ")
		if !slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(g string) bool { return strings.HasPrefix(g, address+" ") }) {
			t.Fatalf("endpoint %q is missing; there are %v", e, slices.Sorted(maps.Keys(got)))
		}
	}
}

// Slices hold at most 100, all endpoints and each once; one endpoint more or less
// rewrites one slice, or splits one in two.
func TestSplitSlices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 700).Draw(t, "endpoints")
		first := netip.MustParseAddr("10.1.0.0")
		var eps []clustermesh.Endpoint
		for a := first; len(eps) < n; a = a.Next() {
			eps = append(eps, clustermesh.Endpoint{Address: a})
		}
		split := func(eps []clustermesh.Endpoint) map[string]string {
			out := make(map[string]string)
			total := 0
			for _, s := range appendSlices(nil, objectName{"ns", "svc"}, "v4-80", nil, slices.Clone(eps)) {
				if len(s.Endpoints) > maxSlice {
					t.Fatalf("slice %s holds %d", s.Name.Slice, len(s.Endpoints))
				}
				if _, twice := out[s.Name.Slice]; twice {
					t.Fatalf("slice %s is there twice", s.Name.Slice)
				}
				total += len(s.Endpoints)
				out[s.Name.Slice] = fmt.Sprint(s.Endpoints)
			}
			if total != len(eps) {
				t.Fatalf("%d endpoints in slices, expected %d", total, len(eps))
			}
			return out
		}
		before := split(eps)
		if n == 0 {
			return
		}
		at := rapid.IntRange(0, n-1).Draw(t, "without")
		after := split(slices.Delete(slices.Clone(eps), at, at+1))
		changed, moved := 0, 0
		for name, content := range before {
			if now, still := after[name]; !still {
				moved++
			} else if now != content {
				changed++
			}
		}
		if changed > 1 || moved > 3 || (changed == 1 && moved > 0) {
			t.Fatalf("%d slices changed and %d went", changed, moved)
		}
	})
}

func TestAggregate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []netip.Prefix
		for range rapid.IntRange(0, 20).Draw(t, "prefixes") {
			bits := rapid.IntRange(26, 32).Draw(t, "bits")
			a := netip.AddrFrom4([4]byte{10, 1, 0, byte(rapid.IntRange(0, 255).Draw(t, "last"))})
			all = append(all, netip.PrefixFrom(a, bits).Masked())
		}
		out := aggregate(slices.Clone(all))
		holds := func(ps []netip.Prefix, a netip.Addr) int {
			n := 0
			for _, p := range ps {
				if p.Contains(a) {
					n++
				}
			}
			return n
		}
		a := netip.MustParseAddr("10.1.0.0")
		for range 256 {
			if want, got := min(1, holds(all, a)), holds(out, a); want != got {
				t.Fatalf("%s: in %d of %v, expected %d", a, got, out, want)
			}
			a = a.Next()
		}
	})
}
