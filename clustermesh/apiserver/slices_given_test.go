package apiserver

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

const slicesGivenManifest = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.1.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: i, readinessProbe: {exec: {command: ["true"]}}}]}
---
apiVersion: v1
kind: Service
metadata: {name: selects, namespace: shop, annotations: {tombolo.io/global: "true"}}
spec: {clusterIP: 172.20.0.1, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: given, namespace: shop, annotations: {tombolo.io/global: "true"}}
spec: {clusterIP: 172.20.0.2, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: given-1, namespace: shop, labels: {kubernetes.io/service-name: given}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.1.1.7]}
- {addresses: [192.0.2.1]}
- {addresses: [203.0.113.9]}
---
apiVersion: v1
kind: Service
metadata: {name: own, namespace: shop}
spec: {clusterIP: 172.20.0.3, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: own-1, namespace: shop, labels: {kubernetes.io/service-name: own}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.1.1.7]}
- {addresses: [192.0.2.1]}
- {addresses: [203.0.113.9]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orphan, namespace: shop}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.1.1.8]}]
`

// With SlicesGiven nothing is derived from selectors and no probe is spoken of;
// endpoints on the host network and outside of the cluster are shown as Kubernetes
// says to the own cluster, and by the tunnel, or not at all, to others.
func TestSlicesGiven(t *testing.T) {
	docs, err := decodeManifest([]byte(slicesGivenManifest), nil)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[Ref]runtime.Object{}
	for _, d := range docs {
		for _, o := range d.objects {
			objects[o.ref] = o.obj
		}
	}
	for _, c := range []struct {
		given    bool
		local    string
		export   string
		problems []string
	}{
		{given: true,
			local:    "local/aws/endpointslice/shop/own/own-1  ports=TCP:8080 endpoints=10.1.1.7@1,192.0.2.1@1,203.0.113.9@0\n",
			export:   "export/aws/endpointslice/shop/given/given-1  ports=TCP:8080 endpoints=10.1.1.1@1,10.1.1.7@1\n",
			problems: []string{"EndpointSlice shop/given-1: an endpoint is not shown to other clusters: 203.0.113.9 is outside"}},
		{given: false,
			export:   "export/aws/endpointslice/shop/selects/v4-80  ports=TCP:80 endpoints=10.1.1.5@1\n",
			problems: []string{"Pod shop/web: its readiness probe is not run", "EndpointSlice shop/given-1: refused: endpoints[2]: 203.0.113.9 is outside"}},
	} {
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		source := &staticSource{changes: make(chan Objects, 1)}
		p := startPublishing(t, Config{SlicesGiven: c.given, PodPrefixes: prefixList("10.1.0.0/16"), Source: source}, store)
		source.changes <- Objects{Complete: true, Upserts: objects, At: time.Now()}
		registered := func(call func() error) func() bool { return func() bool { return call() == nil } }
		eventually(t, "the node is registered", registered(func() error {
			_, err := p.registry.RegisterNode(t.Context(), NodeRegistration{Node: "n1", WireGuardKey: [32]byte{1}, WireGuardEndpoint: "192.0.2.1:51820", UnderlayAddresses: addrList("192.0.2.1")})
			return err
		}))
		eventually(t, "the pod is registered", registered(func() error {
			_, err := p.registry.RegisterEndpoint(t.Context(), EndpointRegistration{Node: "n1", Namespace: "shop", Pod: "web", Owner: "u1", Ready: true, Addresses: addrList("10.1.1.5")})
			return err
		}))
		got := func() (string, string) {
			return dumpStore(store, "local/aws/endpointslice/"), dumpStore(store, "export/aws/endpointslice/")
		}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			local, export := got()
			if local == c.local && export == c.export {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("given %v:\n%s%swant\n%s%sproblems:\n%s", c.given, local, export, c.local, c.export, p.problemText())
			}
		}
		for _, want := range c.problems {
			eventually(t, "problem "+want, func() bool { return strings.Contains(p.problemText(), want) })
		}
		if c.given && strings.Contains(p.problemText(), "probe") {
			t.Errorf("a probe is spoken of: %s", p.problemText())
		}
		p.stop()
		if local, export := got(); local != c.local || export != c.export {
			t.Errorf("given %v:\n%s%s", c.given, local, export)
		}
		store.Close()
	}
}

// An endpoint that names no node is found by its address, also when the node comes
// later, and is outside of the cluster again when the node goes.
func TestGivenEndpointWithoutNodeName(t *testing.T) {
	objects := func(manifest string) map[Ref]runtime.Object {
		docs, err := decodeManifest([]byte(manifest), nil)
		if err != nil {
			t.Fatal(err)
		}
		m := map[Ref]runtime.Object{}
		for _, d := range docs {
			for _, o := range d.objects {
				m[o.ref] = o.obj
			}
		}
		return m
	}
	service := objects(`
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, annotations: {tombolo.io/global: "true"}}
spec: {clusterIP: 172.20.0.2, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.1.1.7]}, {addresses: [192.0.2.1]}]
`)
	both := objects("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.1.1.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}]}")
	for ref, o := range service {
		both[ref] = o
	}
	r := newDeriveRig()
	r.d.cfg.SlicesGiven = true
	key := "/export/aws/endpointslice/shop/db/db-1"
	for i, there := range []bool{false, true, false, true} {
		state := testState{objects: service}
		if there {
			state.objects = both
		}
		r.step(state, false)
		published := false
		for k := range r.store {
			published = published || strings.HasSuffix(k, key)
		}
		if published != there {
			t.Errorf("step %d: the node is there %v, the endpoints are published %v", i, there, published)
		}
	}
}
