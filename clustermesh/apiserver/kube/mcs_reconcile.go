package kube

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// get is an object of an informer, nil if there is none.
func get[T any](i cache.SharedIndexInformer, key string) *T {
	o, ok, _ := i.GetStore().GetByKey(key)
	if !ok {
		return nil
	}
	t, _ := o.(*T)
	return t
}

// reconcile writes one step of what is wanted of one service: what it writes
// comes back by an informer, and asks for the next.
func (m *mcsWriter) reconcile(name clustermesh.ServiceName) error {
	if !m.on.Exports.Known() {
		return nil // asked again once it is
	}
	ctx, cancel := context.WithTimeout(context.Background(), RequestTime)
	defer cancel()
	s := m.state(name)
	w := mcs.Decide(s)
	if err := m.conditions(ctx, name, s, w); err != nil {
		return err
	}
	if !s.Namespace {
		return nil
	}
	if w.Import == nil && !w.Keep {
		return m.remove(ctx, s, w)
	}
	if w.Import != nil && !w.Keep {
		if done, err := m.writeImport(ctx, s, w); err != nil || done {
			return err
		}
	}
	if s.Import == nil {
		return nil
	}
	return m.writeSlices(ctx, s, w)
}

// state is what is known of a service now.
func (m *mcsWriter) state(name clustermesh.ServiceName) mcs.State {
	s := mcs.State{Name: name, Import: get[v1beta1.ServiceImport](m.imports, name.String())}
	s.Exports, s.Unknown = m.on.Exports.Of(name)
	s.Derived = get[corev1.Service](m.services, name.Namespace+"/"+mcs.DerivedName(name))
	ns := get[corev1.Namespace](m.namespaces, name.Namespace)
	s.Namespace = ns != nil && ns.DeletionTimestamp == nil && ns.Status.Phase != corev1.NamespaceTerminating
	if s.Import != nil && s.Import.DeletionTimestamp != nil {
		s.Namespace = false // it is on its way out; when it is gone we are asked again
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.DerivedError = m.refused[name]
	return s
}

// writeImport writes the ServiceImport, its derived Service and its status. done
// says that the rest has to wait for what comes back.
func (m *mcsWriter) writeImport(ctx context.Context, s mcs.State, w mcs.Wanted) (done bool, err error) {
	if err := m.apply(ctx, importResource, s.Name.Namespace, s.Name.Name, s.Import, w.Import, ""); err != nil {
		return true, err
	}
	if s.Import == nil {
		return true, nil
	}
	var failed error
	switch {
	case w.Anew: // its end asks for the next one
		return true, m.delete(ctx, serviceResource, s.Derived)
	case w.Derived != nil:
		failed = m.apply(ctx, serviceResource, w.Derived.Namespace, w.Derived.Name, s.Derived, w.Derived, "")
	case s.Derived != nil:
		failed = m.delete(ctx, serviceResource, s.Derived)
	}
	m.mu.Lock()
	if delete(m.refused, s.Name); failed != nil {
		m.refused[s.Name] = failed
	}
	m.mu.Unlock()
	s.DerivedError = failed
	status := s.Import.DeepCopy()
	wanted := mcs.Decide(s).Status
	for _, c := range wanted.Conditions {
		meta.SetStatusCondition(&status.Status.Conditions, c)
	}
	wanted.Conditions = status.Status.Conditions
	body := &v1beta1.ServiceImport{TypeMeta: w.Import.TypeMeta, ObjectMeta: metav1.ObjectMeta{Namespace: s.Name.Namespace, Name: s.Name.Name}, Status: *wanted}
	if err := m.apply(ctx, importResource, s.Name.Namespace, s.Name.Name, s.Import, body, "status"); err != nil {
		return true, err
	}
	return failed != nil, failed
}

// ours are the EndpointSlices of an import that are there.
func (m *mcsWriter) ours(name clustermesh.ServiceName) []*discoveryv1.EndpointSlice {
	list, _ := m.slices.GetIndexer().ByIndex(mcsIndex, name.String())
	var out []*discoveryv1.EndpointSlice
	for _, o := range list {
		out = append(out, o.(*discoveryv1.EndpointSlice))
	}
	return out
}

// writeSlices writes the wanted slices, then deletes the others.
func (m *mcsWriter) writeSlices(ctx context.Context, s mcs.State, w mcs.Wanted) error {
	present := make(map[string]*discoveryv1.EndpointSlice)
	for _, slice := range m.ours(s.Name) {
		present[slice.Name] = slice
	}
	for _, slice := range w.Slices {
		old := present[slice.Name]
		if delete(present, slice.Name); old != nil && old.AddressType != slice.AddressType {
			if err := m.delete(ctx, sliceResource, old); err != nil { // it cannot change
				return err
			}
			old = nil
		}
		if err := m.apply(ctx, sliceResource, slice.Namespace, slice.Name, old, slice, ""); err != nil {
			return err
		}
	}
	for _, slice := range present {
		if slices.Contains(w.KeepSlices, slice.Labels[v1beta1.LabelSourceCluster]) {
			continue
		}
		if err := m.delete(ctx, sliceResource, slice); err != nil {
			return err
		}
	}
	return nil
}

// remove takes away what is left of a service that nobody exports any more. What
// refers to the ServiceImport goes first.
func (m *mcsWriter) remove(ctx context.Context, s mcs.State, w mcs.Wanted) error {
	s.Import, w.Slices = nil, nil
	if err := m.writeSlices(ctx, s, w); err != nil {
		return err
	}
	if s.Derived != nil {
		if err := m.delete(ctx, serviceResource, s.Derived); err != nil {
			return err
		}
	}
	if im := get[v1beta1.ServiceImport](m.imports, s.Name.String()); im != nil {
		return m.delete(ctx, importResource, im)
	}
	return nil
}

// conditions writes the status of the cluster's own ServiceExport, if any.
func (m *mcsWriter) conditions(ctx context.Context, name clustermesh.ServiceName, s mcs.State, w mcs.Wanted) error {
	exp := get[v1beta1.ServiceExport](m.exports, name.String())
	if exp == nil || exp.DeletionTimestamp != nil {
		return nil
	}
	state := mcs.ExportState{
		Export: exp, Service: get[corev1.Service](m.services, name.String()), Cluster: m.on.Cluster, Published: m.on.Exports.Published(name),
	}
	if im, ok := mcs.Resolve(name, s.Exports); ok && !w.Keep {
		state.Import = &im
	}
	status := exp.DeepCopy().Status
	if state.Published == nil || state.Published.Export == nil {
		meta.RemoveStatusCondition(&status.Conditions, string(v1beta1.ServiceExportConditionConflict))
	}
	for _, c := range mcs.Conditions(state) {
		meta.SetStatusCondition(&status.Conditions, c)
	}
	status.Conditions = slices.DeleteFunc(status.Conditions, func(c metav1.Condition) bool { // others' own
		return c.Type != string(v1beta1.ServiceExportConditionValid) && c.Type != string(v1beta1.ServiceExportConditionReady) && c.Type != string(v1beta1.ServiceExportConditionConflict)
	})
	body := &v1beta1.ServiceExport{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1beta1.GroupVersion.String(), Kind: v1beta1.ServiceExportKindName},
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}, Status: status,
	}
	err := m.apply(ctx, exportResource, name.Namespace, name.Name, exp, body, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
