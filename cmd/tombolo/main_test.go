package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	// client-go notices at its next heartbeat, seconds later, that its connection is closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("k8s.io/client-go/tools/remotecommand.(*heartbeat).start"))
}

// testNow is when every test takes place.
var testNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// answer is what a command line left behind.
type answer struct {
	status      int
	out, errOut string
}

// at runs a command line in this process with an environment of its own.
func at(t *testing.T, vars map[string]string, args ...string) answer {
	t.Helper()
	return atInput(t, vars, strings.NewReader(""), args...)
}

// world is an agent and a mesh API server that are made of fixed answers.
type world struct {
	agent map[string]any // path → JSON, or string for text
	admin *fakeAdmin
	vars  map[string]string
}

func (w *world) at(t *testing.T, args ...string) answer {
	t.Helper()
	return at(t, w.vars, args...)
}

// atInput is at with something on standard input.
func atInput(t *testing.T, vars map[string]string, in io.Reader, args ...string) answer {
	t.Helper()
	var out, errOut bytes.Buffer
	status := run(t.Context(), environment{Args: args, Stdin: in, Stdout: &out, Stderr: &errOut,
		Getenv: func(name string) string { return vars[name] }, Now: func() time.Time { return testNow }})
	return answer{status, out.String(), errOut.String()}
}

// newWorld starts both on Unix sockets; a nil part is not there.
func newWorld(t *testing.T, paths map[string]any, admin *fakeAdmin) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "tombolo-cli") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{agent: paths, admin: admin, vars: map[string]string{
		"TOMBOLO_AGENT_SOCKET": filepath.Join(dir, "agent.sock"), "TOMBOLO_APISERVER_SOCKET": filepath.Join(dir, "apiserver.sock")}}
	if paths != nil {
		s := &http.Server{Handler: http.HandlerFunc(w.serveAgent)}
		go s.Serve(listen(t, w.vars["TOMBOLO_AGENT_SOCKET"]))
		t.Cleanup(func() { s.Close() })
	}
	if admin != nil {
		s := grpc.NewServer()
		pb.RegisterAdminServer(s, admin)
		go s.Serve(listen(t, w.vars["TOMBOLO_APISERVER_SOCKET"]))
		t.Cleanup(s.Stop)
	}
	return w
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *world) serveAgent(res http.ResponseWriter, req *http.Request) {
	switch body := w.agent[req.URL.EscapedPath()].(type) {
	case nil:
		res.WriteHeader(http.StatusNotFound)
		json.NewEncoder(res).Encode(map[string]string{"kind": "Error", "error": "no such thing: \x1b[31m" + req.URL.Path})
	case string:
		res.Write([]byte(body))
	case http.HandlerFunc:
		body(res, req)
	default:
		json.NewEncoder(res).Encode(body)
	}
}

// fakeAdmin answers with what it holds and keeps what it was asked.
type fakeAdmin struct {
	pb.UnimplementedAdminServer
	status *pb.StatusResponse
	refuse error
	asked  []any
}

func ask[R any](f *fakeAdmin, req any, res R) (R, error) {
	f.asked = append(f.asked, req)
	if f.refuse != nil {
		var none R
		return none, f.refuse
	}
	return res, nil
}

func (f *fakeAdmin) Status(_ context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	return ask(f, r, f.status)
}

func (f *fakeAdmin) ListPeers(_ context.Context, r *pb.ListPeersRequest) (*pb.ListPeersResponse, error) {
	return ask(f, r, &pb.ListPeersResponse{Peers: f.status.GetPeers()})
}

func (f *fakeAdmin) Invite(_ context.Context, r *pb.InviteRequest) (*pb.InviteResponse, error) {
	return ask(f, r, &pb.InviteResponse{Token: "tombolo-join-abc", Fingerprint: "aa11", Cluster: "aws", Address: "203.0.113.7:9443",
		Expires: testNow.Add(time.Duration(r.TtlSeconds) * time.Second).UnixNano()})
}

func (f *fakeAdmin) JoinMesh(_ context.Context, r *pb.JoinMeshRequest) (*pb.JoinMeshResponse, error) {
	return ask(f, r, &pb.JoinMeshResponse{Cluster: "gcp", Fingerprint: "bb22", OwnFingerprint: "aa11",
		Checks: []string{"names differ", "clocks agree"}, Existing: []string{"azure"}})
}

func (f *fakeAdmin) LeaveMesh(_ context.Context, r *pb.LeaveMeshRequest) (*pb.LeaveMeshResponse, error) {
	return ask(f, r, &pb.LeaveMeshResponse{Left: []string{"gcp"}, Unreachable: []string{"azure"}})
}

func (f *fakeAdmin) RemovePeer(_ context.Context, r *pb.RemovePeerRequest) (*pb.RemovePeerResponse, error) {
	return ask(f, r, &pb.RemovePeerResponse{Told: true})
}

func (f *fakeAdmin) Drain(_ context.Context, r *pb.DrainRequest) (*pb.DrainResponse, error) {
	d := &pb.DrainStatus{Cluster: r.Cluster, Service: r.Service, Drain: &pb.Drain{Start: testNow.UnixNano(), Over: r.Over, From: 65535, Back: r.Back, By: r.By}}
	d.Left = 65535
	if r.Back {
		d.Drain.From, d.Left = 0, 0
	}
	return ask(f, r, &pb.DrainResponse{Drain: d, Warning: "no cluster is left"})
}

func (f *fakeAdmin) NodeToken(_ context.Context, r *pb.NodeTokenRequest) (*pb.NodeTokenResponse, error) {
	return ask(f, r, &pb.NodeTokenResponse{Token: "tombolo-node-abc", Expires: testNow.Add(10 * time.Minute).UnixNano()})
}

func (f *fakeAdmin) ConfirmDeletes(_ context.Context, r *pb.ConfirmDeletesRequest) (*pb.ConfirmDeletesResponse, error) {
	return ask(f, r, &pb.ConfirmDeletesResponse{Released: 3})
}

func (f *fakeAdmin) Dump(_ context.Context, r *pb.DumpRequest) (*pb.DumpResponse, error) {
	return ask(f, r, &pb.DumpResponse{Text: "/tombolo/v1/export/aws/service/shop/cart global\n/tombolo/v1/export/aws/node/n1 number=1\n"})
}

// golden compares text with a file of testdata, or rewrites it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if want := goldenFile(t, name, got); got != want {
		t.Errorf("testdata/%s differs; if it is meant: go test ./cmd/tombolo -update\n--- got\n%s--- want\n%s", name, got, want)
	}
}

// goldenJSON wants all of a file's fields with their values in a document.
// More fields are fine: that is what the version promises.
func goldenJSON(t *testing.T, name, got string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(goldenFile(t, name, got)), &w); err != nil {
		t.Fatal(err)
	}
	if where := lacks(g, w); where != "" {
		t.Errorf("testdata/%s: %s: scripts rely on it; if nothing was released with it: go test ./cmd/tombolo -update", name, where)
	}
}

// lacks says which part of want is not in got, "" if all is.
func lacks(got, want any) string {
	switch want := want.(type) {
	case map[string]any:
		g, is := got.(map[string]any)
		if !is {
			return " is not an object"
		}
		for name, w := range want {
			if _, there := g[name]; !there {
				return "." + name + " is missing"
			}
			if where := lacks(g[name], w); where != "" {
				return "." + name + where
			}
		}
	case []any:
		g, is := got.([]any)
		if !is || len(g) != len(want) {
			return fmt.Sprintf(" is not a list of %d", len(want))
		}
		for i := range want {
			if where := lacks(g[i], want[i]); where != "" {
				return fmt.Sprintf("[%d]%s", i, where)
			}
		}
	default:
		if got != want {
			return fmt.Sprintf(" is %v, not %v", got, want)
		}
	}
	return ""
}

// goldenFile is the content of a file of testdata, which is rewritten on demand.
func goldenFile(t *testing.T, name, got string) string {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it: go test ./cmd/tombolo -update", err)
	}
	return string(want)
}
