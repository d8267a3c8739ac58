package install

import (
	"context"
	"net"
	"strconv"

	authv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// wanted are rights without which an installation stops half way.
var wanted = []authv1.ResourceAttributes{
	{Verb: "create", Resource: "namespaces"},
	{Verb: "create", Group: "apps", Resource: "daemonsets"},
	{Verb: "create", Group: "apps", Resource: "statefulsets"},
	{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
	{Verb: "create", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
	{Verb: "create", Resource: "secrets"},
}

// facts asks the cluster. Nothing is made in it.
func (c *call) facts(ctx context.Context) (f facts, err error) {
	client := c.cluster.Client
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		return f, err
	}
	f.Kubernetes = version.GitVersion
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return f, err
	}
	f.Nodes = nodes.Items
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return f, err
	}
	f.Pods = pods.Items
	services, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return f, err
	}
	f.Services = services.Items
	sets, err := client.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return f, err
	}
	for _, s := range sets.Items {
		f.DaemonSets = append(f.DaemonSets, s.Namespace+"/"+s.Name)
	}
	switch ns, err := client.CoreV1().Namespaces().Get(ctx, c.Namespace, metav1.GetOptions{}); {
	case err == nil:
		f.Namespace = ns.Labels
	case !apierrors.IsNotFound(err):
		return f, err
	}
	if f.Denied, err = c.denied(ctx); err != nil {
		return f, err
	}
	if f.Servers, err = c.servers(ctx); err != nil {
		return f, err
	}
	if f.Installed, err = c.present(); err != nil {
		return f, err
	}
	ch, err := Chart(c.Version)
	if err != nil {
		return f, err
	}
	values, err := readValues(c.Request)
	if err != nil {
		return f, err
	}
	if f.Set, err = readSettings(ch, values); err != nil {
		return f, err
	}
	f.Server = c.cluster.fillAddress(ctx, ch, values)
	return f, nil
}

// denied are the rights that the user lacks.
func (c *call) denied(ctx context.Context) (out []string, err error) {
	for _, w := range wanted {
		w.Namespace = c.Namespace
		review := &authv1.SelfSubjectAccessReview{Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &w}}
		res, err := c.cluster.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		if !res.Status.Allowed {
			out = append(out, w.Verb+" "+w.Resource)
		}
	}
	return out, nil
}

// servers are the real addresses of kube-apiserver.
func (c *call) servers(ctx context.Context) (out []string, err error) {
	slice, err := c.cluster.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range slice.Endpoints {
		for _, p := range slice.Ports {
			if len(e.Addresses) > 0 && p.Port != nil {
				out = append(out, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
			}
		}
	}
	return out, nil
}
