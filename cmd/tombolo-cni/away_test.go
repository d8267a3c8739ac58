package main

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/cni"
)

// pod is a request as the plugin makes it of args.
func pod(container string) agent.PodRequest {
	return agent.PodRequest{Network: "tombolo", ContainerID: container, IfName: "eth0", Namespace: "shop", Name: "checkout-1", UID: "uid-1"}
}

// An agent that comes up while ADD waits serves it: first nobody listens, then an
// agent says what it waits for.
func TestAddWaitsForTheAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	var asked atomic.Int32
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			w.Write([]byte(`{"error":"the agent is starting"}`))
			return
		}
		w.Write([]byte(`{"ifName":"eth0","hostIfName":"tmbx","mtu":1400,"ips":[{"address":"10.1.2.3/32","gateway":"169.254.1.1"}],"routes":["0.0.0.0/0"]}`))
	})}
	t.Cleanup(func() { s.Close() })
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"CNI_TEST_PLUGIN=1", "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_NETNS=/run/netns/x", "CNI_IFNAME=eth0", "CNI_PATH=/nowhere", "CNI_ARGS=" + args}
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.1.0","name":"tombolo","type":"tombolo-cni","deadline":"60s","socket":"` + socket + `","deletions":"` + deletions(socket) + `"}`)
	// The first connection is closed without an answer, as by an agent that dies.
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
		s.Serve(l)
	}()
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "10.1.2.3/32") || asked.Load() != 3 {
		t.Errorf("%v after %d requests: %s", err, asked.Load(), out)
	}
}

// With no agent, DEL takes the interface away, notes the rest, and succeeds; the
// agent carries the note out. A sandbox that is added again has no note.
func TestDelWithoutAgent(t *testing.T) {
	ns := netns(t)
	socket, pods := serveAgent(t)
	notes := deletions(socket)
	if _, failure := plugin(t, "ADD", socket, "/run/netns/"+ns, args); failure != nil {
		t.Fatal(failure)
	}
	away := filepath.Join(filepath.Dir(socket), "away.sock") // the same directory for notes
	for range 2 {
		if _, failure := plugin(t, "DEL", away, "/run/netns/"+ns, args); failure != nil {
			t.Fatal(failure)
		}
	}
	if out, err := exec.Command("ip", "-n", ns, "link", "show", "eth0").CombinedOutput(); err == nil {
		t.Errorf("the interface is left: %s", out)
	}
	files, err := cni.Deferred(notes)
	if err != nil || len(files) != 1 {
		t.Fatalf("notes %v, %v", files, err)
	}
	if list, _ := pods.List(t.Context()); len(list) != 1 {
		t.Fatalf("%d pods before the note is carried out", len(list))
	}
	if err := pods.CarryOut(notes); err != nil {
		t.Fatal(err)
	}
	if list, _ := pods.List(t.Context()); len(list) != 0 {
		t.Errorf("the note was not carried out: %+v", list)
	}
	if files, _ := cni.Deferred(notes); len(files) != 0 {
		t.Errorf("notes are left: %v", files)
	}
	if err := cni.Defer(notes, pod("c1")); err != nil {
		t.Fatal(err)
	}
	if _, failure := plugin(t, "ADD", socket, "/run/netns/"+ns, args); failure != nil {
		t.Fatal(failure)
	}
	if files, _ := cni.Deferred(notes); len(files) != 0 {
		t.Errorf("the note of the sandbox that was added again is left: %v", files)
	}
	if err := cni.Defer(notes, pod("c0")); err != nil { // of a former sandbox
		t.Fatal(err)
	}
	if err := pods.CarryOut(notes); err != nil {
		t.Fatal(err)
	}
	if list, _ := pods.List(t.Context()); len(list) != 1 {
		t.Errorf("the note of a former sandbox ended the present one")
	}
}

// A DEL whose note cannot be written fails: the runtime has to try again.
func TestDelThatCannotBeNoted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	if err := os.WriteFile(deletions(socket), nil, 0o600); err != nil { // no directory
		t.Fatal(err)
	}
	_, failure := plugin(t, "DEL", socket, "", args)
	if failure == nil || failure.Code != types.ErrTryAgainLater || !strings.Contains(failure.Msg, "cannot be noted") {
		t.Errorf("%+v", failure)
	}
}
