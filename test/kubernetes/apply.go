package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Apply applies a text of YAML documents; what names no namespace goes into ns.
func (c *Cluster) Apply(t *T, ns, text string, args ...any) {
	t.OK(c.apply(t.ctx, ns, fmt.Sprintf(text, args...)), "%s: apply", c.Name)
}

func (c *Cluster) apply(ctx context.Context, ns, text string) error {
	for dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), 4096); ; {
		var u unstructured.Unstructured
		if err := dec.Decode(&u); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(u.Object) == 0 {
			continue
		}
		r, err := c.resource(&u, ns)
		if err != nil {
			return err
		}
		if _, err := r.Apply(ctx, u.GetName(), &u, metav1.ApplyOptions{FieldManager: "tombolo-test", Force: true}); err != nil {
			return fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), err)
		}
	}
}

// resource is the client for an object's kind, in its namespace or in ns.
func (c *Cluster) resource(u *unstructured.Unstructured, ns string) (dynamic.ResourceInterface, error) {
	gvk := u.GroupVersionKind()
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // perhaps it is new
		m, err = c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	if err != nil {
		return nil, err
	}
	if m.Scope.Name() != meta.RESTScopeNameNamespace {
		return c.Dynamic.Resource(m.Resource), nil
	}
	if u.GetNamespace() == "" {
		u.SetNamespace(ns)
	}
	return c.Dynamic.Resource(m.Resource).Namespace(u.GetNamespace()), nil
}

// Get reads an object of any kind.
func (c *Cluster) Get(ctx context.Context, apiVersion, kind, ns, name string) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	u.SetAPIVersion(apiVersion)
	u.SetKind(kind)
	r, err := c.resource(u, ns)
	if err != nil {
		return nil, err
	}
	return r.Get(ctx, name, metav1.GetOptions{})
}

// Delete deletes one.
func (c *Cluster) Delete(t *T, apiVersion, kind, ns, name string) {
	u := &unstructured.Unstructured{}
	u.SetAPIVersion(apiVersion)
	u.SetKind(kind)
	r, err := c.resource(u, ns)
	if err == nil {
		err = r.Delete(t.ctx, name, metav1.DeleteOptions{})
	}
	t.OK(err, "%s: delete %s %s", c.Name, kind, name)
}

// condition is a condition's status and reason in any object's status.
func condition(u *unstructured.Unstructured, kind string) (status, reason string) {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, e := range list {
		if m, ok := e.(map[string]any); ok && m["type"] == kind {
			return fmt.Sprint(m["status"]), fmt.Sprint(m["reason"])
		}
	}
	return "", ""
}

var nestedStrings = unstructured.NestedStringSlice

// minimalKubeconfig writes one with this cluster alone.
func (c *Cluster) minimalKubeconfig() (string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.Kubeconfig
	all, err := rules.Load()
	if err != nil {
		return "", err
	}
	all.CurrentContext = c.Context
	if err := clientcmdapi.MinifyConfig(all); err != nil {
		return "", err
	}
	f, err := os.CreateTemp("", "tombolo-test-*.kubeconfig")
	if err != nil {
		return "", err
	}
	f.Close()
	return f.Name(), clientcmd.WriteToFile(*all, f.Name())
}
