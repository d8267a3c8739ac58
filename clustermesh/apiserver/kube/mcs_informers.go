package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// mcsIndex finds our EndpointSlices by the service they are of.
const mcsIndex = "import"

// watch makes the informers of what is written here and what decides about it.
func (m *mcsWriter) watch() error {
	var err error
	make := func(gv schema.GroupVersion, resource, labels string, list func() runtime.Object, item runtime.Object, indexers cache.Indexers) cache.SharedIndexInformer {
		if err != nil {
			return nil
		}
		var i cache.SharedIndexInformer
		i, err = m.informer(gv, resource, labels, list, item, indexers)
		return i
	}
	m.exports = make(v1beta1.SchemeGroupVersion, v1beta1.ServiceExportPluralName, "", func() runtime.Object { return &v1beta1.ServiceExportList{} }, &v1beta1.ServiceExport{}, nil)
	m.imports = make(v1beta1.SchemeGroupVersion, v1beta1.ServiceImportPluralName, "", func() runtime.Object { return &v1beta1.ServiceImportList{} }, &v1beta1.ServiceImport{}, nil)
	m.services = make(corev1.SchemeGroupVersion, "services", "", func() runtime.Object { return &corev1.ServiceList{} }, &corev1.Service{}, nil)
	m.slices = make(discoveryv1.SchemeGroupVersion, "endpointslices", discoveryv1.LabelManagedBy+"="+mcs.ManagedBy, func() runtime.Object { return &discoveryv1.EndpointSliceList{} }, &discoveryv1.EndpointSlice{}, cache.Indexers{
		mcsIndex: func(o any) ([]string, error) {
			s := o.(*discoveryv1.EndpointSlice)
			return []string{s.Namespace + "/" + s.Labels[v1beta1.LabelServiceName]}, nil
		},
	})
	m.namespaces = make(corev1.SchemeGroupVersion, "namespaces", "", func() runtime.Object { return &corev1.NamespaceList{} }, &corev1.Namespace{}, nil)
	return err
}

func (m *mcsWriter) informer(gv schema.GroupVersion, resource, labels string, newList func() runtime.Object, item runtime.Object, indexers cache.Indexers) (cache.SharedIndexInformer, error) {
	group, err := m.cfg.Client.Group(gv)
	if err != nil {
		return nil, err
	}
	i := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = labels
			list := newList()
			return list, request(group, resource, o).Do(ctx).Into(list)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.Watch = labels, true
			return request(group, resource, o).Watch(ctx)
		},
	}, item, 0, indexers)
	if err := i.SetTransform(lean); err != nil {
		return nil, err
	}
	_, err = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: m.touch, UpdateFunc: func(_, o any) { m.touch(o) }, DeleteFunc: m.touch,
	})
	return i, err
}

// lean drops what nobody looks at here, and of Services that are no import's all
// that says nothing about exporting them.
func lean(o any) (any, error) {
	m, ok := o.(metav1.Object)
	if !ok {
		return o, nil
	}
	m.SetManagedFields(nil)
	switch o := o.(type) {
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Name, DeletionTimestamp: o.DeletionTimestamp}, Status: o.Status}, nil
	case *corev1.Service:
		if mcs.Imports(o) == "" {
			o.Annotations, o.Status = nil, corev1.ServiceStatus{}
		}
	}
	return o, nil
}
