package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
)

// realAPI is a real kube-apiserver, of the kubeconfig that TOMBOLO_TEST_KUBECONFIG
// names, and a namespace on it that goes with the test. TOMBOLO_TEST_LAB names the
// folder of a lab of test/kubernetes/lab whose cluster it is, for tests that stop it.
type realAPI struct {
	t      *testing.T
	config *rest.Config
	client *kube.Client
	ns     string
}

func openReal(t *testing.T) *realAPI {
	t.Helper()
	file := os.Getenv("TOMBOLO_TEST_KUBECONFIG")
	if file == "" {
		t.Skip("TOMBOLO_TEST_KUBECONFIG names no kubeconfig of a real kube-apiserver")
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	r := &realAPI{t: t, config: config}
	r.client, r.ns = r.open(config), r.namespace(fmt.Sprintf("tombolo-test-%d", time.Now().UnixNano()))
	r.client.Namespace = r.ns
	return r
}

func (r *realAPI) open(config *rest.Config) *kube.Client {
	r.t.Helper()
	c, err := kube.New(config, kube.Config{Namespace: r.ns})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.CloseIdle)
	return c
}

// namespace makes one, and waits until pods may be made in it.
func (r *realAPI) namespace(name string) string {
	r.t.Helper()
	namespaces := r.dynamic(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "")
	if _, err := namespaces.Create(context.Background(), object("v1", "Namespace", "", name, map[string]any{}), metav1.CreateOptions{}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := namespaces.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			r.t.Error(err)
		}
	})
	accounts := r.dynamic(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, name)
	r.soon("a default service account", func() error {
		_, err := accounts.Get(context.Background(), "default", metav1.GetOptions{})
		return err
	})
	return name
}

func (r *realAPI) dynamic(gvr schema.GroupVersionResource, ns string) dynamic.ResourceInterface {
	r.t.Helper()
	d, err := dynamic.NewForConfig(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	if ns == "" {
		return d.Resource(gvr)
	}
	return d.Resource(gvr).Namespace(ns)
}

// soon waits until f has no error.
func (r *realAPI) soon(what string, f func() error) {
	r.t.Helper()
	var err error
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	r.t.Fatalf("%s: %v", what, err)
}

// define installs a CustomResourceDefinition of the chart, unless it is there.
func (r *realAPI) define(path string) {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join("../../../deploy/chart", path))
	if err != nil {
		r.t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, &u.Object); err != nil {
		r.t.Fatal(err)
	}
	crds := r.dynamic(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, "")
	if _, err := crds.Create(context.Background(), u, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		r.t.Fatal(err)
	}
	r.soon("the definition "+u.GetName()+" is served", func() error {
		u, err := crds.Get(context.Background(), u.GetName(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		if text := fmt.Sprint(conditions); !strings.Contains(text, "status:True type:Established") {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
}

// lab runs a command of the lab that the API server belongs to.
func (r *realAPI) lab(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("../../../test/kubernetes/lab/machine", args...)
	cmd.Env = append(os.Environ(), "LAB_DIR="+os.Getenv("TOMBOLO_TEST_LAB"))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		r.t.Fatalf("machine %v: %v: %s", args, err, errOut.String())
	}
	return out.String()
}

// etcd calls the etcd of the lab's first cluster, by its gateway.
func (r *realAPI) etcd(path, body string, answer any) {
	r.t.Helper()
	out := r.lab("c1-cp", "curl", "-sS", "--fail", "-d", body, "http://127.0.0.1:2379"+path)
	if err := json.Unmarshal([]byte(out), answer); err != nil {
		r.t.Fatalf("etcd %s: %v: %s", path, err, out)
	}
}

// wire is a way to the API server that can be cut.
type wire struct {
	l      net.Listener
	target string
	mu     sync.Mutex
	down   bool
	conns  map[net.Conn]bool
}

// wired is a configuration of a client that goes by a wire.
func (r *realAPI) wired() (*rest.Config, *wire) {
	r.t.Helper()
	u, err := url.Parse(r.config.Host)
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	w := &wire{l: l, target: u.Host, conns: make(map[net.Conn]bool)}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { w.carry(c) })
		}
	})
	r.t.Cleanup(func() {
		l.Close()
		w.set(true)
		running.Wait()
	})
	config := rest.CopyConfig(r.config)
	config.TLSClientConfig.ServerName = u.Hostname()
	config.Host = "https://" + l.Addr().String()
	return config, w
}

func (w *wire) carry(c net.Conn) {
	defer c.Close()
	to, err := net.Dial("tcp", w.target)
	if err != nil {
		return
	}
	defer to.Close()
	w.mu.Lock()
	if w.down {
		w.mu.Unlock()
		return
	}
	w.conns[c], w.conns[to] = true, true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.conns, c)
		delete(w.conns, to)
		w.mu.Unlock()
	}()
	done := make(chan struct{}, 2)
	pipe := func(a, b net.Conn) {
		io.Copy(a, b)
		a.Close()
		b.Close()
		done <- struct{}{}
	}
	go pipe(c, to)
	go pipe(to, c)
	<-done
	<-done
}

// set cuts the wire, or mends it.
func (w *wire) set(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
	for c := range w.conns {
		if down {
			c.Close()
		}
	}
}

// source follows the API server by a client until the test ends.
func (r *realAPI) source(client *kube.Client) *delivered {
	r.t.Helper()
	s := kube.NewSource(kube.SourceConfig{Client: client, ServiceExports: true, Log: slog.New(slog.DiscardHandler)})
	d := &delivered{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, d.take) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	r.soon("the first delivery", func() error {
		if complete, _, _, _ := d.counts(); complete == 0 {
			return fmt.Errorf("nothing complete; problems: %s", d.problem())
		}
		return nil
	})
	return d
}

// mine are the objects of the test's namespace, one a line.
func (r *realAPI) mine(d *delivered) string {
	var lines []string
	for line := range strings.Lines(d.has()) {
		if line = strings.TrimSpace(line); strings.Contains(line, " "+r.ns+"/") {
			lines = append(lines, strings.Replace(line, r.ns+"/", "", 1))
		}
	}
	return strings.Join(lines, "\n")
}

func (r *realAPI) expect(d *delivered, what, want string) {
	r.t.Helper()
	r.soon(what, func() error {
		if got := r.mine(d); got != want || d.problem() != "" {
			return fmt.Errorf("%q, want %q; problems: %s", got, want, d.problem())
		}
		return nil
	})
}

func (r *realAPI) service(name string) {
	r.t.Helper()
	_, err := r.client.Services(r.ns).Create(context.Background(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"tombolo.io/global": "true"}},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *realAPI) deleteService(name string) {
	r.t.Helper()
	if err := r.client.Services(r.ns).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

// What a real API server holds is delivered, and each change of it by a watch.
func TestRealSource(t *testing.T) {
	r := openReal(t)
	d := r.source(r.client)
	r.expect(d, "an empty namespace", "")
	if d.get(apiserver.KindNamespace, "", r.ns) == nil {
		t.Error("the namespace itself is not delivered")
	}
	r.service("web")
	port, yes := int32(8080), true
	_, err := r.client.EndpointSlices(r.ns).Create(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.1.5"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	policies := r.dynamic(networkingv1.SchemeGroupVersion.WithResource("networkpolicies"), r.ns)
	if _, err := policies.Create(t.Context(), object("networking.k8s.io/v1", "NetworkPolicy", r.ns, "deny", map[string]any{"podSelector": map[string]any{}}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.expect(d, "what was made", "EndpointSlice web-1\nNetworkPolicy deny\nService web")
	svc := d.get(apiserver.KindService, r.ns, "web").(*corev1.Service)
	if svc.Spec.ClusterIP == "" || svc.Annotations["tombolo.io/global"] != "true" || svc.Spec.Selector != nil {
		t.Errorf("delivered: %+v", svc)
	}
	_, _, named, lacking := d.counts()
	r.deleteService("web")
	r.soon("the service is gone, and its slice, which Kubernetes collects or not", func() error {
		if got := r.mine(d); strings.Contains(got, "Service web") {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	if _, _, n, l := d.counts(); n <= named || l != lacking {
		t.Errorf("%d named deletes after %d, %d by a list after %d: a watch names what was deleted", n, named, l, lacking)
	}
}

// missed is a source that knows Services a and b, and has not heard, its connection
// being broken, that c came and a went.
func (r *realAPI) missed() (*wire, *delivered) {
	r.t.Helper()
	config, w := r.wired()
	d := r.source(r.open(config))
	r.service("a")
	r.service("b")
	r.expect(d, "two services", "Service a\nService b")
	w.set(true)
	r.service("c")
	r.deleteService("a")
	return w, d
}

// A connection that breaks changes nothing; what happened meanwhile is learnt once it
// is back, and nothing begins anew.
func TestRealSourceCut(t *testing.T) {
	r := openReal(t)
	w, d := r.missed()
	r.soon("a problem", func() error {
		if !strings.Contains(d.problem(), "does not answer about") {
			return fmt.Errorf("problems: %q", d.problem())
		}
		return nil
	})
	if got := r.mine(d); got != "Service a\nService b" {
		t.Errorf("changed while nothing was heard: %s", got)
	}
	w.set(false)
	r.expect(d, "what happened meanwhile", "Service b\nService c")
	if complete, _, _, _ := d.counts(); complete != 1 {
		t.Errorf("%d complete deliveries", complete)
	}
}

// A kube-apiserver that is restarted while its etcd forgets what the source has seen
// last: 410 Gone, a new list, and the difference.
func TestRealSourceRestartAndCompaction(t *testing.T) {
	r := openReal(t)
	if os.Getenv("TOMBOLO_TEST_LAB") == "" || os.Getenv("TOMBOLO_TEST_RESTART") == "" {
		t.Skip("TOMBOLO_TEST_LAB and TOMBOLO_TEST_RESTART do not say that the kube-apiserver of a lab may be stopped")
	}
	w, d := r.missed()
	var at struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	r.etcd("/v3/kv/range", `{"key":"AA==","limit":"1"}`, &at)
	if n, err := strconv.Atoi(at.Header.Revision); err != nil || n == 0 {
		t.Fatalf("revision %q of etcd", at.Header.Revision)
	}
	r.etcd("/v3/kv/compaction", `{"revision":"`+at.Header.Revision+`","physical":true}`, &at)
	r.lab("--stop", "c1-cp", "kube-apiserver") // what it remembers itself goes, too
	r.soon("kube-apiserver is down", func() error {
		if _, err := r.client.Services(r.ns).List(context.Background(), metav1.ListOptions{}); err == nil {
			return fmt.Errorf("it answers")
		}
		return nil
	})
	w.set(false)
	if got := r.mine(d); got != "Service a\nService b" {
		t.Errorf("changed while nothing was heard: %s", got)
	}
	r.lab("--start", "c1-cp", "kube-apiserver")
	r.expect(d, "what happened meanwhile", "Service b\nService c")
	complete, _, _, lacking := d.counts()
	if complete != 1 || lacking == 0 {
		t.Errorf("%d complete deliveries, %d deletes by a list: history was compacted, so only a list can tell", complete, lacking)
	}
	r.service("d")
	r.expect(d, "watches go on", "Service b\nService c\nService d")
}
