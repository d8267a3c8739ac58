package kube

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/gentype"
)

// object is any Kubernetes object.
type object interface {
	runtime.Object
	metav1.Object
}

// Resource is a typed client of one kind: Get, List, Watch, Create, Update,
// UpdateStatus, Patch, Delete. namespace is empty for kinds of the whole cluster,
// and to list and watch all namespaces.
func Resource[T object, L runtime.Object](c *Client, gvr schema.GroupVersionResource, namespace string, newT func() T, newL func() L) (*gentype.ClientWithList[T, L], error) {
	group, err := c.Group(gvr.GroupVersion())
	if err != nil {
		return nil, err
	}
	var options []gentype.Option[T]
	if builtIn[gvr.GroupVersion()] {
		options = append(options, gentype.PrefersProtobuf[T]())
	}
	return gentype.NewClientWithList(gvr.Resource, group, parameters, namespace, newT, newL, options...), nil
}

// must is for Kubernetes' own groups, whose client always can be made once the
// settings were good: New has tried.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Services is the client of Services; namespace "" = all.
func (c *Client) Services(namespace string) *gentype.ClientWithList[*corev1.Service, *corev1.ServiceList] {
	return must(Resource(c, corev1.SchemeGroupVersion.WithResource("services"), namespace,
		func() *corev1.Service { return &corev1.Service{} }, func() *corev1.ServiceList { return &corev1.ServiceList{} }))
}

// Namespaces is the client of Namespaces.
func (c *Client) Namespaces() *gentype.ClientWithList[*corev1.Namespace, *corev1.NamespaceList] {
	return must(Resource(c, corev1.SchemeGroupVersion.WithResource("namespaces"), "",
		func() *corev1.Namespace { return &corev1.Namespace{} }, func() *corev1.NamespaceList { return &corev1.NamespaceList{} }))
}

// ConfigMaps is the client of ConfigMaps.
func (c *Client) ConfigMaps(namespace string) *gentype.ClientWithList[*corev1.ConfigMap, *corev1.ConfigMapList] {
	return must(Resource(c, corev1.SchemeGroupVersion.WithResource("configmaps"), namespace,
		func() *corev1.ConfigMap { return &corev1.ConfigMap{} }, func() *corev1.ConfigMapList { return &corev1.ConfigMapList{} }))
}

// Secrets is the client of Secrets.
func (c *Client) Secrets(namespace string) *gentype.ClientWithList[*corev1.Secret, *corev1.SecretList] {
	return must(Resource(c, corev1.SchemeGroupVersion.WithResource("secrets"), namespace,
		func() *corev1.Secret { return &corev1.Secret{} }, func() *corev1.SecretList { return &corev1.SecretList{} }))
}

// EndpointSlices is the client of EndpointSlices; namespace "" = all.
func (c *Client) EndpointSlices(namespace string) *gentype.ClientWithList[*discoveryv1.EndpointSlice, *discoveryv1.EndpointSliceList] {
	return must(Resource(c, discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), namespace,
		func() *discoveryv1.EndpointSlice { return &discoveryv1.EndpointSlice{} }, func() *discoveryv1.EndpointSliceList { return &discoveryv1.EndpointSliceList{} }))
}

// Events is the client of Events.
func (c *Client) Events(namespace string) *gentype.ClientWithList[*eventsv1.Event, *eventsv1.EventList] {
	return must(Resource(c, eventsv1.SchemeGroupVersion.WithResource("events"), namespace,
		func() *eventsv1.Event { return &eventsv1.Event{} }, func() *eventsv1.EventList { return &eventsv1.EventList{} }))
}

// TokenReviews is the client of TokenReviews.
func (c *Client) TokenReviews() *gentype.Client[*authenticationv1.TokenReview] {
	gvr := authenticationv1.SchemeGroupVersion.WithResource("tokenreviews")
	return gentype.NewClient(gvr.Resource, must(c.Group(gvr.GroupVersion())), parameters, "",
		func() *authenticationv1.TokenReview { return &authenticationv1.TokenReview{} }, gentype.PrefersProtobuf[*authenticationv1.TokenReview]())
}
