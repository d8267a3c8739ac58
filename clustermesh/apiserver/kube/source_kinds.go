package kube

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// sourceKind is one kind of object that the source follows.
type sourceKind struct {
	name     string
	group    string
	versions []string // in order of preference; more than one: whichever is served
	resource string
	labels   string // selectors: what does not match is not sent
	fields   string
	optional bool // a custom resource: it may be absent, and come later
	// spared: a feature may be without it. Where the API server does not let it be
	// seen, the rest is published; policies are no such kind, as without them more
	// would pass.
	spared  bool
	newList func() runtime.Object
	// trim leaves of an object what is read here; it may change the object.
	trim func(runtime.Object) runtime.Object
	// raw: the text of an object is needed, not its decoded form.
	raw bool
}

// Labels of Services and EndpointSlices that are somebody else's work.
const (
	labelServiceProxyName = "service.kubernetes.io/service-proxy-name"
	labelSourceCluster    = "multicluster.kubernetes.io/source-cluster"
)

var sourceKinds = []sourceKind{
	{
		name: apiserver.KindNode, versions: []string{"v1"}, resource: "nodes",
		newList: func() runtime.Object { return &corev1.NodeList{} }, trim: trimNode,
	},
	{
		name: apiserver.KindNamespace, versions: []string{"v1"}, resource: "namespaces",
		newList: func() runtime.Object { return &corev1.NamespaceList{} }, trim: trimNamespace,
	},
	{
		name: apiserver.KindService, versions: []string{"v1"}, resource: "services", labels: "!" + labelServiceProxyName,
		newList: func() runtime.Object { return &corev1.ServiceList{} }, trim: trimService,
	},
	{
		// Slices of no Service are nobody's; those of other clusters' endpoints are
		// written by implementations of the Multi-Cluster Services API.
		name: apiserver.KindEndpointSlice, group: discoveryv1.GroupName, versions: []string{"v1"}, resource: "endpointslices",
		labels:  discoveryv1.LabelServiceName + ",!" + labelServiceProxyName + ",!" + labelSourceCluster,
		newList: func() runtime.Object { return &discoveryv1.EndpointSliceList{} }, trim: trimSlice,
	},
	{
		// A pod that ended has no address any more, one without a node has none yet.
		name: apiserver.KindPod, versions: []string{"v1"}, resource: "pods",
		fields:  "status.phase!=Succeeded,status.phase!=Failed,spec.nodeName!=",
		newList: func() runtime.Object { return &corev1.PodList{} }, trim: trimPod,
	},
	{
		name: apiserver.KindNetworkPolicy, group: networkingv1.GroupName, versions: []string{"v1"}, resource: "networkpolicies",
		newList: func() runtime.Object { return &networkingv1.NetworkPolicyList{} }, trim: trimPolicy,
	},
	{
		name: apiserver.KindClusterNetworkPolicy, group: clusterPolicyBeta.Group, versions: []string{"v1beta1", "v1alpha2"},
		resource: "clusternetworkpolicies", optional: true, raw: true,
	},
	{
		name: apiserver.KindServiceExport, group: mcsv1beta1.GroupName, versions: []string{"v1beta1"}, resource: "serviceexports",
		optional: true, spared: true, newList: func() runtime.Object { return &mcsv1beta1.ServiceExportList{} }, trim: trimExport,
	},
}

// crd is the name of the kind's CustomResourceDefinition.
func (k *sourceKind) crd() string { return k.resource + "." + k.group }

// rule is the rule of a ClusterRole that the kind needs.
func (k *sourceKind) rule() string {
	return fmt.Sprintf("get, list, watch of %s (API group %q)", k.resource, k.group)
}

func (k *sourceKind) gvr(version string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.group, Version: version, Resource: k.resource}
}

// listWatch lists and watches a kind; every outcome is noted.
func (k *kindState) listWatch(version string) (cache.ListerWatcher, error) {
	c := k.source.cfg.Client
	if k.raw {
		dyn, err := c.Dynamic()
		if err != nil {
			return nil, err
		}
		r := dyn.Resource(k.gvr(version))
		return k.noting(
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return r.List(ctx, o) },
			func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return r.Watch(ctx, o) },
		), nil
	}
	group, err := c.Group(k.gvr(version).GroupVersion())
	if err != nil {
		return nil, err
	}
	return k.noting(
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := k.newList()
			return list, request(group, k.resource, o).Do(ctx).Into(list)
		},
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return request(group, k.resource, o).Watch(ctx)
		},
	), nil
}

func request(group rest.Interface, resource string, o metav1.ListOptions) *rest.Request {
	r := group.Get().Resource(resource).VersionedParams(&o, parameters)
	if o.TimeoutSeconds != nil {
		r = r.Timeout(time.Duration(*o.TimeoutSeconds) * time.Second)
	}
	return r
}

func (k *kindState) noting(list cache.ListWithContextFunc, watches cache.WatchFuncWithContext) cache.ListerWatcher {
	narrow := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = k.labels, k.fields
		return o
	}
	// A reflector drops a watch without ending it when its store refuses the list
	// that the watch began with; the next request ends it.
	var last watch.Interface
	end := func() {
		if last != nil {
			last.Stop()
		}
		last = nil
	}
	k.endWatch = end
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if o.ResourceVersion == "0" {
				// Whatever an API server remembers would do for a start, also what it
				// remembers from before a partition. What etcd holds is asked for.
				o.ResourceVersion = ""
			}
			l, err := list(ctx, narrow(o))
			k.note(ctx, err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			end()
			w, err := watches(ctx, narrow(o))
			if err == nil {
				last = w
			}
			k.note(ctx, broken(w, err))
			return w, err
		},
	}
}

// broken makes an error of what client-go hides: of a connection that breaks or
// gets no answer it makes a watch that is over.
func broken(w watch.Interface, err error) error {
	if err == nil && reflect.TypeOf(w) == emptyWatch {
		return io.ErrUnexpectedEOF
	}
	return err
}

var emptyWatch = reflect.TypeOf(watch.NewEmptyWatch())

func compareText(a, b string) int { return strings.Compare(a, b) }
