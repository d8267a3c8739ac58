package kube_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// mcsRig is the writer of cluster a, whose records and those of its peer b a test
// puts there itself.
type mcsRig struct {
	t       *testing.T
	api     *kubetest.Server
	client  *kube.Client
	exports *apiserver.Exports
}

var helloName = clustermesh.ServiceName{Namespace: "ns", Name: "hello"}

func newMCSRig(t *testing.T) *mcsRig {
	r := &mcsRig{t: t, api: kubetest.New(t), exports: apiserver.NewExports("a", 1, nil)}
	r.api.Serve(
		kubetest.Kind{GroupVersionResource: v1beta1.SchemeGroupVersion.WithResource("serviceexports"), Name: "ServiceExport", Namespace: true},
		kubetest.Kind{GroupVersionResource: v1beta1.SchemeGroupVersion.WithResource("serviceimports"), Name: "ServiceImport", Namespace: true})
	client, err := kube.New(r.api.Config(), kube.Config{})
	if err != nil {
		t.Fatal(err)
	}
	r.client = client
	r.exports.SetPeers([]*clustermesh.Peer{{Name: "b", ID: 2}})
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
		r.says("a", scope)
	}
	return r
}

// start runs the writer until the test ends.
func (r *mcsRig) start() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	part := kube.MCS(kube.MCSConfig{Client: r.client, ClusterSet: "mesh", PropertiesAgain: 20 * time.Millisecond})
	go func() {
		done <- part.Run(ctx, &apiserver.Running{Cluster: "a", ID: 1, Exports: r.exports, Problems: apiserver.NewProblems(nil)})
	}()
	r.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		r.client.CloseIdle()
	})
}

// says is all that a cluster says in a scope.
func (r *mcsRig) says(cluster string, scope clustermesh.Scope, records ...clustermesh.Record) {
	id := clustermesh.ID(cluster[0] - 'a' + 1)
	v := clustermesh.NewView(clustermesh.Admission{Cluster: cluster, ID: id, Local: cluster == "a", PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, scope)
	for _, rec := range records {
		if err := v.Apply(clustermesh.Change{Key: clustermesh.KeyOf(scope, cluster, rec), Record: rec}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.exports.Take(clustermesh.Update{Cluster: cluster, Scope: scope, View: v})
}

func helloExport(second int64, change func(*clustermesh.Service)) *clustermesh.Service {
	s := &clustermesh.Service{Name: helloName, Ports: []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 80}},
		Export: &clustermesh.Export{Created: clustermesh.OriginAt(time.Unix(second, 0)), IPv4: true}}
	if change != nil {
		change(s)
	}
	return s
}

func helloSlice(addr string) *clustermesh.EndpointSlice {
	return &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: helloName, Slice: "x1"}, Ports: []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 8080}},
		Endpoints: []clustermesh.Endpoint{{Address: netip.MustParseAddr(addr), Ready: true, Serving: true}}}
}

func (r *mcsRig) serviceImport() *v1beta1.ServiceImport {
	c, err := kube.Resource(r.client, v1beta1.SchemeGroupVersion.WithResource("serviceimports"), "ns",
		func() *v1beta1.ServiceImport { return &v1beta1.ServiceImport{} }, func() *v1beta1.ServiceImportList { return &v1beta1.ServiceImportList{} })
	if err != nil {
		r.t.Fatal(err)
	}
	im, err := c.Get(context.Background(), "hello", metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return im
}

// text is what there is of the import, in a line.
func (r *mcsRig) text() string {
	var b strings.Builder
	if im := r.serviceImport(); im != nil {
		b.WriteString(string(im.Spec.Type))
		if im.Spec.Type == v1beta1.ClusterSetIP { // this API server knows no owners of fields, so the others leave some behind
			fmt.Fprint(&b, im.Spec.IPs)
		}
		b.WriteString(" of")
		for _, c := range im.Status.Clusters {
			fmt.Fprint(&b, " ", c.Cluster)
		}
		for _, c := range im.Status.Conditions {
			fmt.Fprint(&b, " ", c.Type, "=", c.Status)
		}
	}
	if _, err := r.client.Services("ns").Get(context.Background(), mcs.DerivedName(helloName), metav1.GetOptions{}); err == nil {
		b.WriteString(" derived")
	}
	list, err := r.client.EndpointSlices("ns").List(context.Background(), metav1.ListOptions{LabelSelector: v1beta1.LabelServiceName + "=hello"})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range list.Items {
		fmt.Fprint(&b, " ", s.Labels[v1beta1.LabelSourceCluster], s.Endpoints[0].Addresses)
	}
	return strings.TrimSpace(b.String())
}

func (r *mcsRig) want(what, text string) {
	r.t.Helper()
	eventually(r.t, what+": "+text, func() bool { return r.text() == text })
}

// allocate does what an API server does for a Service.
func (r *mcsRig) allocate() {
	eventually(r.t, "a derived Service", func() bool {
		s, err := r.client.Services("ns").Get(context.Background(), mcs.DerivedName(helloName), metav1.GetOptions{})
		if err != nil {
			return false
		}
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.129.0.9", []string{"10.129.0.9"}
		_, err = r.client.Services("ns").Update(context.Background(), s, metav1.UpdateOptions{})
		return err == nil
	})
}

func namespaceObject() runtime.Object {
	return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: "ns"}}
}

// TestMCSImportsComeAndGo: from the first exporter to the last one's end.
func TestMCSImportsComeAndGo(t *testing.T) {
	r := newMCSRig(t)
	r.start()
	r.says("b", clustermesh.ScopeExport, helloExport(1000, nil), helloSlice("10.2.0.5"))
	r.want("no namespace", "")
	r.api.Put(namespaceObject())
	r.allocate()
	r.want("one exporter", "ClusterSetIP[10.129.0.9] of b Ready=True derived b[10.2.0.5]")
	r.says("a", clustermesh.ScopeExport, helloExport(2000, nil), helloSlice("10.1.0.5"))
	r.want("two exporters", "ClusterSetIP[10.129.0.9] of a b Ready=True derived a[10.1.0.5] b[10.2.0.5]")
	r.says("b", clustermesh.ScopeExport)
	r.want("one left", "ClusterSetIP[10.129.0.9] of a Ready=True derived a[10.1.0.5]")
	r.says("a", clustermesh.ScopeExport, helloExport(2000, func(s *clustermesh.Service) { s.Headless = true }), helloSlice("10.1.0.6"))
	r.want("headless now", "Headless of a Ready=True a[10.1.0.6]")
	r.says("a", clustermesh.ScopeExport)
	r.want("none", "")
}

// TestMCSDerivedAnew: an import that turns from one family to the other is given a
// Service with an address of that one.
func TestMCSDerivedAnew(t *testing.T) {
	r := newMCSRig(t)
	r.api.Put(namespaceObject())
	r.start()
	r.says("b", clustermesh.ScopeExport, helloExport(1000, nil))
	r.allocate()
	r.want("IPv4", "ClusterSetIP[10.129.0.9] of b Ready=True derived")
	r.says("b", clustermesh.ScopeExport, helloExport(1000, func(s *clustermesh.Service) { s.Export.IPv4, s.Export.IPv6 = false, true }))
	eventually(t, "a derived Service of IPv6, without an address yet", func() bool {
		s, err := r.client.Services("ns").Get(context.Background(), mcs.DerivedName(helloName), metav1.GetOptions{})
		return err == nil && s.Spec.ClusterIP == "" && len(s.Spec.IPFamilies) == 1 && s.Spec.IPFamilies[0] == corev1.IPv6Protocol
	})
}

// TestMCSKeepsWhatIsNotHeardOf: a server that has just started knows nothing of
// its peers, and takes nothing away.
func TestMCSKeepsWhatIsNotHeardOf(t *testing.T) {
	r := newMCSRig(t)
	r.api.Put(namespaceObject())
	stop := r.startStoppable()
	r.says("b", clustermesh.ScopeExport, helloExport(1000, nil), helloSlice("10.2.0.5"))
	r.allocate()
	before := "ClusterSetIP[10.129.0.9] of b Ready=True derived b[10.2.0.5]"
	r.want("one exporter", before)
	stop()
	// Another replica leads; b is silent, a exports, too.
	r.exports = apiserver.NewExports("a", 1, nil)
	r.exports.SetPeers([]*clustermesh.Peer{{Name: "b", ID: 2}})
	r.says("a", clustermesh.ScopeLocal)
	r.says("a", clustermesh.ScopeExport, helloExport(2000, nil), helloSlice("10.1.0.5"))
	r.start()
	r.want("b is silent", before[:strings.Index(before, " b[")]+" a[10.1.0.5] b[10.2.0.5]")
	r.says("b", clustermesh.ScopeExport)
	r.want("b says that it exports nothing", "ClusterSetIP[10.129.0.9] of a Ready=True derived a[10.1.0.5]")
	r.exports.SetPeers(nil)
	r.says("a", clustermesh.ScopeExport)
	r.want("none", "")
}

func (r *mcsRig) startStoppable() func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	part := kube.MCS(kube.MCSConfig{Client: r.client, ClusterSet: "mesh"})
	on := &apiserver.Running{Cluster: "a", ID: 1, Exports: r.exports, Problems: apiserver.NewProblems(nil)}
	go func() { done <- part.Run(ctx, on) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	}
}

// TestMCSConditions: the status of the own ServiceExport.
func TestMCSConditions(t *testing.T) {
	r := newMCSRig(t)
	r.api.Put(namespaceObject(), &v1beta1.ServiceExport{
		TypeMeta: metav1.TypeMeta{APIVersion: v1beta1.GroupVersion.String(), Kind: "ServiceExport"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "hello"},
	})
	r.start()
	c, err := kube.Resource(r.client, v1beta1.SchemeGroupVersion.WithResource("serviceexports"), "ns",
		func() *v1beta1.ServiceExport { return &v1beta1.ServiceExport{} }, func() *v1beta1.ServiceExportList { return &v1beta1.ServiceExportList{} })
	if err != nil {
		t.Fatal(err)
	}
	says := func(text string) {
		t.Helper()
		var got string
		eventually(t, text, func() bool {
			e, err := c.Get(context.Background(), "hello", metav1.GetOptions{})
			if err != nil {
				return false
			}
			got = ""
			for _, c := range e.Status.Conditions {
				got += fmt.Sprintf("%s=%s/%s ", c.Type, c.Status, c.Reason)
			}
			return strings.TrimSpace(got) == text
		})
	}
	says("Valid=False/NoService Ready=False/Failed")
	r.api.Put(&corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "hello"}})
	says("Valid=True/Valid Ready=False/Pending")
	r.says("a", clustermesh.ScopeExport, helloExport(1000, nil))
	says("Valid=True/Valid Ready=True/Exported Conflict=False/NoConflicts")
	r.says("b", clustermesh.ScopeExport, helloExport(2000, func(s *clustermesh.Service) { s.Ports[0].Port = 81 }))
	says("Valid=True/Valid Ready=True/Exported Conflict=True/PortConflict")
}
