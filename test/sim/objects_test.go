package sim

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// objects is a cluster's Kubernetes: what its mesh API servers see through their
// sources. It never fails; it is the truth.
type objects struct {
	mu      sync.Mutex
	all     map[apiserver.Ref]runtime.Object
	sources map[*source]bool
}

// source is one server's view.
type source struct {
	of      *objects
	changes chan apiserver.Objects
}

func newObjects() *objects {
	return &objects{all: map[apiserver.Ref]runtime.Object{}, sources: map[*source]bool{}}
}

// Run implements apiserver.Source.
func (s *source) Run(ctx context.Context, deliver func(apiserver.Objects)) error {
	s.of.mu.Lock()
	first := apiserver.Objects{Complete: true, Upserts: maps.Clone(s.of.all), At: time.Now()}
	s.of.sources[s] = true
	s.of.mu.Unlock()
	defer func() {
		s.of.mu.Lock()
		delete(s.of.sources, s)
		s.of.mu.Unlock()
	}()
	deliver(first)
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-s.changes:
			deliver(o)
		}
	}
}

// apply changes objects; nil = it is deleted.
func (o *objects) apply(changes map[apiserver.Ref]runtime.Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := apiserver.Objects{Upserts: map[apiserver.Ref]runtime.Object{}, DeletesNamed: true, At: time.Now()}
	for ref, obj := range changes {
		if obj == nil {
			if o.all[ref] != nil {
				out.Deletes = append(out.Deletes, ref)
			}
			delete(o.all, ref)
			continue
		}
		o.all[ref], out.Upserts[ref] = obj, obj
	}
	for s := range o.sources {
		s.changes <- out
	}
}

const namespace = "shop"

func nodeRef(name string) apiserver.Ref { return apiserver.Ref{Kind: apiserver.KindNode, Name: name} }

func refOf(kind, name string) apiserver.Ref {
	return apiserver.Ref{Kind: kind, Namespace: namespace, Name: name}
}

func nodeObject(f agenttest.Facts, n int) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: f.NodeName(n)}}
	for _, p := range f.Node(n).PodPrefixes[:1] {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
	}
	return node
}

func podName(n, p int) string { return fmt.Sprintf("pod-%d-%d", n, p) }

// pod is one life of a pod.
type pod struct {
	n, p, app, life int
}

func (p pod) name() string { return podName(p.n, p.p) }
func (p pod) uid() string  { return fmt.Sprintf("uid-%d-%d-%d", p.n, p.p, p.life) }
func (p pod) label() string {
	return fmt.Sprint("app", p.app)
}

func (p pod) object(f agenttest.Facts) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: p.name(), UID: types.UID(p.uid()), Labels: map[string]string{"app": p.label()}},
		Spec:       corev1.PodSpec{NodeName: f.NodeName(p.n)},
	}
}

// service is what a Service says.
type service struct {
	host, affinity, weight int
	global, shared         bool
	pods                   [][3]int // node, pod, ready
}

var affinities = []clustermesh.Affinity{"", clustermesh.AffinityLocal, clustermesh.AffinityRemote, clustermesh.AffinityNone}

func (s service) object(f agenttest.Facts, name string) *corev1.Service {
	notes := map[string]string{
		apiserver.AnnotationGlobal: strconv.FormatBool(s.global), apiserver.AnnotationShared: strconv.FormatBool(s.shared),
		apiserver.AnnotationWeight: strconv.Itoa(s.weight),
	}
	if a := affinities[s.affinity%len(affinities)]; a != "" {
		notes[apiserver.AnnotationAffinity] = string(a)
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: notes},
		Spec: corev1.ServiceSpec{
			ClusterIP: fmt.Sprintf("172.20.%d.%d", f.ID, s.host), Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
}

func (s service) slice(f agenttest.Facts, name string) *discoveryv1.EndpointSlice {
	port, portName, proto := int32(8080), "http", corev1.ProtocolTCP
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}},
	}
	for _, p := range s.pods {
		ready, serving, node := p[2] != 0, true, f.NodeName(p[0])
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{f.Pod(p[0], p[1]).String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving},
		})
	}
	return out
}
