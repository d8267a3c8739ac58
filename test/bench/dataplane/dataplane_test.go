package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tombolo-mesh/tombolo/agent"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == generatorArg {
		exitOn(generator())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-services", "1000, 1,1000", "-only", "paths,d"})
	if err != nil || !reflect.DeepEqual(o.services, []int{1, 1000}) || o.runs != 5 {
		t.Errorf("%+v %v", o, err)
	}
	if !o.wants("paths") || o.wants("packets") || !o.wantsVariant("d") || o.wantsVariant("b") {
		t.Errorf("only %v", o.only)
	}
	o, err = parse([]string{"-quick", "-runs", "3"})
	if err != nil || o.runs != 3 || o.each != quickly.each || !reflect.DeepEqual(o.services, quickly.services) {
		t.Errorf("%+v %v", o, err)
	}
	for _, bad := range []string{"-services=x", "-services=0", "-runs=0", "-each=-1s", "-rules=-1", "-only=everything", "more"} {
		if _, err := parse([]string{bad}); err == nil || errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// What is dialled is a service that there is, and each once.
func TestSample(t *testing.T) {
	for _, n := range []int{1, 10, targetCount, 1000, 100_000} {
		there := map[string]bool{}
		for i := range n {
			there[frontend(i).String()] = true
		}
		if len(there) != n {
			t.Fatalf("%d services have %d frontends", n, len(there))
		}
		got := sample(n)
		if len(got) != min(n, targetCount) {
			t.Errorf("%d of %d services", len(got), n)
		}
		for _, a := range got {
			if !there[a.String()] {
				t.Errorf("%v of %d services is none, or twice there", a, n)
			}
			delete(there, a.String())
		}
	}
}

func figuresOf(way string, services int, connects float64) pathFigures {
	f := pathFigures{variant: variant{Letter: "x", Way: way, Services: services}, Kinds: map[string]*series{}}
	for _, k := range kinds {
		f.Kinds[k] = &series{Ratio: []float64{1.2}, PerSecond: []float64{120}}
	}
	f.Kinds[crr].Ratio = []float64{connects}
	return f
}

func TestAims(t *testing.T) {
	met := func(all ...pathFigures) (out string) {
		for _, a := range pathAims(all) {
			out += fmt.Sprint(a.Met, " ")
		}
		return out
	}
	plainly := figuresOf(plain, 0, 1)
	for _, c := range []struct {
		all  []pathFigures
		want string // connects, round trips, stream, flat, then ahead of each
	}{
		{[]pathFigures{plainly, figuresOf(nftables, 1, 0.9)}, ""},
		{[]pathFigures{plainly, figuresOf(packet, 1, 1.15), figuresOf(packet, 1000, 1.14)}, "true true true true "},
		{[]pathFigures{plainly, figuresOf(packet, 1, 1.3), figuresOf(packet, 1000, 1.15)}, "true true true false "},
		{[]pathFigures{plainly, figuresOf(packet, 1, 1.15), figuresOf(packet, 1000, 1.09)}, "false true true true "},
		// The streams and round trips of both are equal here, so nobody is ahead.
		{[]pathFigures{plainly, figuresOf(iptables, 1, 1.3), figuresOf(packet, 1, 1.2)}, "true true true true false "},
	} {
		if got := met(c.all...); got != c.want {
			t.Errorf("%v: %s, want %s", c.all, got, c.want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	var b bytes.Buffer
	markdown(&b, [][]string{{"", "×a"}, {"longer", "1"}})
	if want := "|        | ×a |\n| ------ | -- |\n| longer | 1  |\n"; b.String() != want {
		t.Errorf("%q", b.String())
	}
	if got := count(1_234_567) + count(999) + count(1000); got != "1,234,5679991,000" {
		t.Error(got)
	}
}

// The API server says what kube-proxy's informers ask for.
func TestAPIServer(t *testing.T) {
	w := &world{serverPod: agent.LocalPod{Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.3")}}}
	srv := httptest.NewServer(newAPIServer(w, 3))
	defer srv.Close()
	get := func(path string, into any) int {
		t.Helper()
		r, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if into == nil {
			io.Copy(io.Discard, r.Body)
		} else if err := json.NewDecoder(r.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
		return r.StatusCode
	}
	var services corev1.ServiceList
	var slices discoveryv1.EndpointSliceList
	get("/api/v1/services?limit=500&resourceVersion=0", &services)
	get("/apis/discovery.k8s.io/v1/endpointslices", &slices)
	if len(services.Items) != 3 || len(slices.Items) != 3 || services.Kind != "ServiceList" || services.ResourceVersion == "" {
		t.Fatalf("%+v %+v", services, slices)
	}
	for i, s := range services.Items {
		slice := slices.Items[i]
		if s.Spec.ClusterIP != frontend(i).Addr().String() || slice.Labels[discoveryv1.LabelServiceName] != s.Name ||
			slice.Endpoints[0].Addresses[0] != w.backend().Addr().String() || *slice.Ports[0].Name != s.Spec.Ports[0].Name {
			t.Errorf("%+v %+v", s, slice)
		}
	}
	if code := get("/api/v1/services?watch=true&sendInitialEvents=true", nil); code != http.StatusUnprocessableEntity {
		t.Errorf("a watch that begins with a list: %d", code)
	}
	if code := get("/api/v1/pods", nil); code != http.StatusNotFound {
		t.Errorf("what is not there: %d", code)
	}
	// A watch goes on until its time is up.
	begin := time.Now()
	if code := get("/api/v1/nodes?watch=true&timeoutSeconds=1", nil); code != http.StatusOK {
		t.Errorf("watch: %d", code)
	}
	if time.Since(begin) < time.Second {
		t.Error("the watch ended at once")
	}
}

// Traffic of each kind over the plain path, and by a service at the socket; and
// what cannot be reached is an error that names it.
func TestTraffic(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads BPF programs")
	}
	ctx := t.Context()
	place := testPlace(t)
	r := &runner{opts: options{cpu: 0}, place: place}
	for _, v := range []variant{{Letter: "a", Way: plain}, {Letter: "d", Way: socket, Services: 300}, {Letter: "e", Way: packet, Services: 300, Rules: 100}, {Letter: "f", Way: node, Services: 300, Rules: 3}} {
		l, err := r.build(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.close)
		for _, kind := range kinds {
			o, err := l.measure(ctx, kind, 50*time.Millisecond, 0)
			if err != nil || o.PerSecond <= 0 || kind != stream && (o.P50 <= 0 || o.P99 < o.P50) {
				t.Errorf("%s %s: %+v %v", v, kind, o, err)
			}
		}
		l.targets = append(sample(300)[:1:1], frontend(299))
		if v.Way == plain {
			if err := l.reachAll(ctx, 0); err == nil || !strings.Contains(err.Error(), l.targets[0].String()) {
				t.Errorf("a frontend without anything to translate it: %v", err)
			}
		} else if err := l.reachAll(ctx, 0); err != nil {
			t.Error(err)
		}
	}
}

// Packets of every kind are delivered, in every run, and cost more than nothing.
func TestPackets(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads BPF programs")
	}
	r := &runner{opts: options{services: []int{3}, rules: []int{0, 5}, runs: 2, only: []string{"e"}}, place: testPlace(t)}
	if err := r.packets(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(r.out.Packets) != 2*len(packetKinds) {
		t.Fatalf("%+v", r.out.Packets)
	}
	for _, f := range r.out.Packets {
		if len(f.NS) != 2 || len(f.Ratio) != 2 || min(f.NS[0], f.NS[1]) <= max(f.Empty[0], f.Empty[1]) {
			t.Errorf("%+v", f)
		}
	}
}

// The headers of a frame have right checksums: summed up with them, nothing is left.
func TestFrame(t *testing.T) {
	f := frame(netip.MustParseAddrPort("10.1.0.3:64001"), netip.MustParseAddrPort("172.20.0.1:80"), syn)
	ip, l4 := f[ethLen:ethLen+20], f[ethLen+20:]
	if checksum(ip, 0) != 0 || checksum(l4, sum(ip[12:20], tcp+uint32(len(l4)))) != 0 {
		t.Errorf("% x", f)
	}
}

// The folders and cgroups of a run that was killed go with the next one; those
// of runs that are still going stay.
func TestRemoveStale(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-x", marker, dead.Process.Pid))
	live := filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-x", marker, os.Getppid()))
	other := filepath.Join(os.TempDir(), marker+"notes")
	for _, d := range []string{stale, live, other} {
		if err := os.MkdirAll(filepath.Join(d, "bpf"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	removeStale()
	if _, err := os.Stat(stale); err == nil {
		t.Error("the folder of a dead run is there")
	}
	for _, d := range []string{live, other} {
		if _, err := os.Stat(d); err != nil {
			t.Error(err)
		}
	}
}

// testPlace is what newWorkplace makes, of the test's own.
func testPlace(t *testing.T) *workplace {
	t.Helper()
	p, cleanup, err := newWorkplace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	return p
}
