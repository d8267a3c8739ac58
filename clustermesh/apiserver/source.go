package apiserver

import (
	"cmp"
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
)

// Ref names one Kubernetes object of a source. Namespace is empty for Nodes,
// Namespaces and ClusterNetworkPolicies.
type Ref struct{ Kind, Namespace, Name string }

// String is Kind namespace/name, as problems and logs spell it.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// compareRefs orders by kind, namespace, name.
func compareRefs(a, b Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// The kinds a source delivers. Everything else is ignored with a note.
const (
	KindService       = "Service"
	KindPod           = "Pod"
	KindNode          = "Node"
	KindNamespace     = "Namespace"
	KindNetworkPolicy = "NetworkPolicy"
	KindEndpointSlice = "EndpointSlice"
	// Of the whole cluster, as Nodes and Namespaces are.
	KindClusterNetworkPolicy = "ClusterNetworkPolicy"
	// Of the Multi-Cluster Services API; the object is a *v1beta1.ServiceExport.
	KindServiceExport = "ServiceExport"
)

// Objects is one delivery of a source. Objects are shared and immutable: an
// object that changed is another object.
type Objects struct {
	// Complete: Upserts is everything there is; what it lacks is deleted. The
	// first delivery of a source is complete, and so is each full re-read.
	Complete bool
	Upserts  map[Ref]runtime.Object
	// Deletes come before Upserts: what is in both was deleted, and another object
	// has its name now.
	Deletes []Ref
	// DeletesNamed: each of Deletes was said to be deleted, by name (a watch of
	// Kubernetes does so). Otherwise they are merely not there any more, which may
	// be a folder that was unmounted.
	DeletesNamed bool
	// Problems are all present problems of the source; they replace the former.
	Problems []Problem
	// At is when the change was noticed: the origin of what is derived from it.
	At time.Time
}

// Source is where Kubernetes objects come from: a folder of manifests or a
// kube-apiserver. Run delivers from one goroutine until ctx ends, first one
// complete list, then changes. deliver does not block on the store. Run returns
// nil when ctx ends, an error only when the source can never be read.
type Source interface {
	Run(ctx context.Context, deliver func(Objects)) error
}

// Problem is something an operator should know and can do something about. It
// changes nothing that worked.
type Problem struct {
	Object string // what it is about: a file, "Service shop/checkout", the store
	What   string
	Why    string
	Fix    string
	Since  time.Time
}

// Text is one line.
func (p Problem) Text() string {
	s := p.What
	if p.Object != "" {
		s = p.Object + ": " + s
	}
	if p.Why != "" {
		s += ": " + p.Why
	}
	if p.Fix != "" {
		s += "; " + p.Fix
	}
	return s
}

// SortProblems puts them in the order in which they are shown.
func SortProblems(ps []Problem) { sortProblems(ps) }

func sortProblems(ps []Problem) {
	slices.SortFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.What, b.What), cmp.Compare(a.Why, b.Why))
	})
}
