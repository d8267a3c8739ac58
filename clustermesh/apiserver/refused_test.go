package apiserver

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// heldStore takes no commits while it is held: what is published is late.
type heldStore struct {
	kvstore.Store
	mu   sync.Mutex
	held chan struct{}
}

func (s *heldStore) hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := make(chan struct{})
	s.held = held
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held = nil
		close(held)
	}
}

func (s *heldStore) Commit(ctx context.Context, ops ...kvstore.Op) (kvstore.Position, error) {
	s.mu.Lock()
	held := s.held
	s.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return kvstore.Position{}, ctx.Err()
		}
	}
	return s.Store.Commit(ctx, ops...)
}

// refusable is an object in two good forms and a refused one, and what tells of
// each in the store.
type refusable struct {
	name                string
	beside              string // what must be there, too
	first, second, bad  string
	firstText, nextText string // of the records; neither is in the other
	renewedText         string // of what is published of the refused form alone; "" = nothing
	ref                 string
}

var refusables = []refusable{
	{
		name: "annotations of a Service", ref: "service/shop/cart",
		first:     "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop, annotations: {tombolo.io/global: \"true\"}}\nspec: {clusterIP: 172.20.0.1, ports: [{port: 80}]}",
		second:    "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop, annotations: {tombolo.io/global: \"true\", tombolo.io/affinity: local}}\nspec: {clusterIP: 172.20.0.1, ports: [{port: 80}]}",
		bad:       "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop, annotations: {tombolo.io/global: maybe}}\nspec: {clusterIP: 172.20.0.1, ports: [{port: 80}]}",
		firstText: "export/aws/service/shop/cart  ports=TCP:80 frontends=172.20.0.1 global shared\n", nextText: "global shared affinity=local\n",
		renewedText: "local/aws/service/shop/cart  ports=TCP:80 frontends=172.20.0.1 shared\n",
	},
	{
		name: "Service", ref: "service/shop/cart",
		first:     "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {clusterIP: 172.20.0.1, ports: [{port: 80}]}",
		second:    "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {clusterIP: 172.20.0.1, ports: [{port: 81}]}",
		bad:       "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {clusterIP: nowhere, ports: [{port: 82}]}",
		firstText: "TCP:80 ", nextText: "TCP:81 ",
	},
	{
		name: "EndpointSlice", ref: "endpointslice/shop/cart",
		beside:    "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {clusterIP: 172.20.0.1, ports: [{port: 80}]}",
		first:     "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [10.1.1.5]}]",
		second:    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [10.1.1.6]}]",
		bad:       "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [\"fd00::1\"]}]",
		firstText: "10.1.1.5@", nextText: "10.1.1.6@",
	},
	{
		name: "NetworkPolicy", ref: "policy/shop/deny",
		first:     "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress]}",
		second:    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Egress]}",
		bad:       "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Sideways]}",
		firstText: "Ingress", nextText: "Egress",
	},
	{
		name: "ClusterNetworkPolicy", ref: "clusterpolicy/floor",
		first:     "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: floor}\nspec: {tier: Admin, priority: 5, subject: {namespaces: {}}}",
		second:    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: floor}\nspec: {tier: Baseline, priority: 5, subject: {namespaces: {}}}",
		bad:       "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: floor}\nspec: {tier: Penthouse, priority: 5, subject: {namespaces: {}}}",
		firstText: "Admin", nextText: "Baseline",
	},
	{
		name: "Node", ref: "node/n1",
		first:     "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.1.1.0/24]}",
		second:    "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.1.2.0/24]}",
		bad:       "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [192.168.0.0/24]}",
		firstText: "10.1.1.0/24", nextText: "10.1.2.0/24",
	},
}

// What is refused keeps the last good state in force, which is the one before,
// however little time there was to publish it; and nothing of an object that was
// deleted before, however little time there was for that.
func TestRefusedKeepsTheLastGoodState(t *testing.T) {
	put := func(manifest string) func(*refusedRig) { return func(r *refusedRig) { r.deliver(false, manifest) } }
	for _, c := range refusables {
		for name, steps := range map[string]struct {
			before, held []func(*refusedRig)
			want, never  string
		}{
			"the one before": {
				[]func(*refusedRig){put(c.first)}, []func(*refusedRig){put(c.bad)}, c.firstText, c.nextText,
			},
			"the one before, just put": {
				[]func(*refusedRig){put(c.first)}, []func(*refusedRig){put(c.second), put(c.bad)}, c.nextText, c.firstText,
			},
			"deleted": {
				[]func(*refusedRig){put(c.first)}, []func(*refusedRig){func(r *refusedRig) { r.delete(c.first) }, put(c.bad)}, c.renewedText, c.firstText,
			},
			"deleted, in one delivery": {
				[]func(*refusedRig){put(c.first)}, []func(*refusedRig){func(r *refusedRig) { r.deliver(true, c.bad) }}, c.renewedText, c.firstText,
			},
			"deleted, and refused twice": {
				[]func(*refusedRig){put(c.first)},
				[]func(*refusedRig){func(r *refusedRig) { r.delete(c.first) }, put(c.bad), func(r *refusedRig) { r.derived() }, put(c.bad + "\n")},
				c.renewedText, c.firstText,
			},
			"deleted, good, refused": {
				[]func(*refusedRig){put(c.first)}, []func(*refusedRig){func(r *refusedRig) { r.delete(c.first) }, put(c.second), put(c.bad)}, c.nextText, c.firstText,
			},
		} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				r := newRefusedRig(t, c)
				for _, f := range steps.before {
					f(r)
				}
				r.published()
				release := r.store.hold()
				for _, f := range steps.held {
					f(r)
				}
				r.derived()
				release()
				r.published()
				eventually(t, "the outcome", func() bool {
					text := r.text()
					return !strings.Contains(text, steps.never) && (steps.want == "" && text == "" || steps.want != "" && strings.Contains(text, steps.want))
				})
			})
		}
	}
}

// refusedRig publishes what a test delivers.
type refusedRig struct {
	t      *testing.T
	c      refusable
	store  *heldStore
	source *staticSource
	p      *publishing
}

func newRefusedRig(t *testing.T, c refusable) *refusedRig {
	memory := kvstore.NewMemory(kvstore.MemoryOptions{})
	t.Cleanup(memory.Close)
	r := &refusedRig{t: t, c: c, store: &heldStore{Store: memory}, source: &staticSource{changes: make(chan Objects, 1)}}
	r.p = startPublishing(t, Config{SlicesGiven: true, PodPrefixes: prefixList("10.1.0.0/16"), Source: r.source, Guard: time.Hour}, r.store)
	r.source.changes <- Objects{Complete: true, Upserts: r.objects(c.beside), At: time.Now()}
	return r
}

func (r *refusedRig) objects(manifest string) map[Ref]runtime.Object {
	r.t.Helper()
	docs, err := decodeManifest([]byte(manifest), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	objects := make(map[Ref]runtime.Object)
	for _, d := range docs {
		for _, o := range d.objects {
			objects[o.ref] = o.obj
		}
	}
	return objects
}

// deliver puts an object. anew: it was deleted before, in the same delivery.
func (r *refusedRig) deliver(anew bool, manifest string) {
	o := Objects{Upserts: r.objects(manifest), DeletesNamed: true, At: time.Now()}
	for ref := range o.Upserts {
		if anew {
			o.Deletes = append(o.Deletes, ref)
		}
	}
	r.source.changes <- o
}

func (r *refusedRig) delete(manifest string) {
	o := Objects{DeletesNamed: true, At: time.Now()}
	for ref := range r.objects(manifest) {
		o.Deletes = append(o.Deletes, ref)
	}
	r.source.changes <- o
}

// derived waits until all that was delivered is derived.
func (r *refusedRig) derived() {
	r.t.Helper()
	name := objectName{"zz", "mark"}
	mark := r.objects("apiVersion: v1\nkind: Service\nmetadata: {name: mark, namespace: zz}\nspec: {clusterIP: 172.21.0.1, ports: [{port: 1}]}")
	r.source.changes <- Objects{Upserts: mark, At: time.Now()}
	want := mark[Ref{KindService, name.Namespace, name.Name}]
	eventually(r.t, "all is derived", func() (done bool) {
		err := r.p.core.ask(r.t.Context(), func() {
			st := r.p.core.d.services[name]
			done = st != nil && runtime.Object(st.svc) == want && len(r.p.core.d.dirty) == 0
		})
		return err == nil && done
	})
}

// published waits until all that was delivered is in the store.
func (r *refusedRig) published() {
	r.t.Helper()
	r.derived()
	eventually(r.t, "all is published", func() bool {
		pub := r.p.core.publisher.Load()
		return pub != nil && pub.Idle() && len(dumpStore(r.store, "local/aws/service/zz/")) > 0
	})
}

// text is what is published of the object.
func (r *refusedRig) text() string {
	kind, name, _ := strings.Cut(r.c.ref, "/")
	return dumpStore(r.store, "export/aws/"+kind+"/"+name) + dumpStore(r.store, "local/aws/"+kind+"/"+name)
}
