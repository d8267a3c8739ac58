package kube

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
)

var (
	exportResource  = v1beta1.SchemeGroupVersion.WithResource(v1beta1.ServiceExportPluralName)
	importResource  = v1beta1.SchemeGroupVersion.WithResource(v1beta1.ServiceImportPluralName)
	serviceResource = corev1.SchemeGroupVersion.WithResource("services")
	sliceResource   = discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
)

// apply brings the fields that wanted names to what it says, by server-side
// apply. Nothing is sent if they say so already. What wanted does not name any
// more, but did before, goes only with an apply: so of objects that others may
// add to the first one in a term is always sent, and costs nothing if it changes
// nothing.
func (m *mcsWriter) apply(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, live, wanted runtime.Object, part string) error {
	body, err := saidFields(wanted, part)
	if err != nil {
		return err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	key, sum := gvr.Resource+"/"+part+"/"+namespace+"/"+name, sha256.Sum256(text)
	if !reflect.ValueOf(live).IsNil() {
		m.mu.Lock()
		same := m.applied[key] == sum
		m.mu.Unlock()
		if same || gvr == sliceResource {
			present, err := runtime.DefaultUnstructuredConverter.ToUnstructured(live)
			if err != nil {
				return err
			}
			if covers(present, withoutType(body)) {
				return nil
			}
		}
	}
	group, err := m.cfg.Client.Group(gvr.GroupVersion())
	if err != nil {
		return err
	}
	err = patchRequest(group, gvr.Resource, namespace, name, part, text).Do(ctx).Error()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		delete(m.applied, key)
		return fmt.Errorf("%s %s/%s: %w", gvr.Resource, namespace, name, err)
	}
	m.applied[key] = sum
	return nil
}

func patchRequest(group rest.Interface, resource, namespace, name, part string, body []byte) *rest.Request {
	r := group.Patch(types.ApplyPatchType).Resource(resource).Name(name).Body(body).
		Param("fieldManager", mcsManager).Param("force", "true")
	if namespace != "" {
		r = r.Namespace(namespace)
	}
	if part != "" {
		r = r.SubResource(part)
	}
	return r
}

// saidFields are those of an object that it says itself: the status alone, or all but
// the status.
func saidFields(o runtime.Object, part string) (map[string]any, error) {
	all, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	if md, ok := all["metadata"].(map[string]any); ok {
		delete(md, "creationTimestamp")
	}
	if part == "status" {
		return map[string]any{"apiVersion": all["apiVersion"], "kind": all["kind"], "metadata": all["metadata"], "status": all["status"]}, nil
	}
	delete(all, "status")
	return all, nil
}

// withoutType: objects of a list carry no kind of their own.
func withoutType(body map[string]any) map[string]any {
	out := make(map[string]any, len(body))
	for k, v := range body {
		if k != "apiVersion" && k != "kind" {
			out[k] = v
		}
	}
	return out
}

// covers: everything that wanted says is so in live, lists as a whole.
func covers(live, wanted any) bool {
	switch w := wanted.(type) {
	case map[string]any:
		l, ok := live.(map[string]any)
		if !ok {
			return len(w) == 0 && live == nil
		}
		for k, v := range w {
			if !covers(l[k], v) {
				return false
			}
		}
		return true
	case []any:
		l, ok := live.([]any)
		if !ok {
			return len(w) == 0 && live == nil
		}
		if len(l) != len(w) {
			return false
		}
		for i := range w {
			if !covers(l[i], w[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(live, wanted)
}

// delete takes an object away, that very one.
func (m *mcsWriter) delete(ctx context.Context, gvr schema.GroupVersionResource, o metav1.Object) error {
	group, err := m.cfg.Client.Group(gvr.GroupVersion())
	if err != nil {
		return err
	}
	uid := o.GetUID()
	options := &metav1.DeleteOptions{}
	if uid != "" {
		options.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	err = group.Delete().Resource(gvr.Resource).Namespace(o.GetNamespace()).Name(o.GetName()).Body(options).Do(ctx).Error()
	m.mu.Lock()
	for _, part := range []string{"", "status"} {
		delete(m.applied, gvr.Resource+"/"+part+"/"+o.GetNamespace()+"/"+o.GetName())
	}
	m.mu.Unlock()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another one by now
	}
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", gvr.Resource, o.GetNamespace(), o.GetName(), err)
	}
	return nil
}
