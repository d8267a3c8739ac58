package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"github.com/tombolo-mesh/tombolo/cmd/internal/relay"
	"github.com/tombolo-mesh/tombolo/cmd/internal/relay/pod/podtest"
)

func TestMain(m *testing.M) {
	// client-go's heartbeat notices at its next beat, seconds later, that its
	// connection is closed.
	// client-go keeps connections to a real kube-apiserver for the life of the process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("k8s.io/client-go/tools/remotecommand.(*heartbeat).start"), goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*ClientConn).readLoop"))
}

// echo answers each connection with what it says, in capitals.
func echo(t *testing.T) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pod") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 32<<10)
				for {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					conn.Write(bytes.ToUpper(buf[:n]))
				}
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		os.RemoveAll(dir)
	})
	return path
}

// relaying runs the relay as the image would.
func relaying(path string) func(string, string, []string, podtest.Streams) (int, error) {
	return func(_, _ string, _ []string, s podtest.Streams) (int, error) {
		if err := relay.Run(context.Background(), path, s.In, s.Out); err != nil {
			fmt.Fprintln(s.Err, err)
			return 1, nil
		}
		return 0, nil
	}
}

func open(t *testing.T, s *podtest.Server) *Cluster {
	t.Helper()
	c, err := Open(Config{Kubeconfig: []string{s.Start(t, "aws", "gcp")}, Namespace: "tombolo-system"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func servers(names ...string) []corev1.Pod {
	var pods []corev1.Pod
	for _, name := range names {
		pods = append(pods, podtest.Pod("tombolo-system", name, APIServer.Label, APIServer.Container, "node-"+name))
	}
	return pods
}

func TestDial(t *testing.T) {
	for _, c := range []struct {
		name     string
		onlySPDY bool
		exec     string
	}{
		{"WebSocket", false, "websocket a apiserver tombolo-apiserver relay"},
		{"SPDY", true, "spdy a apiserver tombolo-apiserver relay"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &podtest.Server{Pods: servers("a"), Run: relaying(echo(t)), OnlySPDY: c.onlySPDY}
			cluster := open(t, s)
			targets, err := cluster.Find(t.Context(), APIServer, "")
			if err != nil || len(targets) != 1 {
				t.Fatalf("%v %v", targets, err)
			}
			conn, err := cluster.Dial(t.Context(), targets[0])
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// More than any buffer on the way holds, both ways at once.
			sent := bytes.Repeat([]byte("a line of text\n"), 1<<16)
			go conn.Write(sent)
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, bytes.ToUpper(sent)) {
				t.Errorf("%v; the same: %v", err, bytes.Equal(got, bytes.ToUpper(sent)))
			}
			if execs := s.Execs(); len(execs) != 1 || execs[0] != c.exec {
				t.Errorf("%q", execs)
			}
		})
	}
}

// A server that goes away ends the connection.
func TestServerEnds(t *testing.T) {
	s := &podtest.Server{Pods: servers("a"), Run: func(_, _ string, _ []string, s podtest.Streams) (int, error) {
		io.WriteString(s.Out, relay.Greeting+"last words")
		return 0, nil
	}}
	conn, err := open(t, s).Dial(t.Context(), Target{Program: APIServer, Pod: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if all, err := io.ReadAll(conn); err != nil || string(all) != "last words" {
		t.Errorf("%q %v", all, err)
	}
}

func TestDialErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		s    *podtest.Server
		pod  string
		says []string
	}{
		{"no socket", &podtest.Server{Run: relaying("/nowhere/s")}, "a",
			[]string{"cannot reach the mesh API server in pod a of context \"aws\": there is no socket /nowhere/s"}},
		{"older image", &podtest.Server{Run: func(_, _ string, _ []string, s podtest.Streams) (int, error) {
			io.WriteString(s.Err, "tombolo-apiserver: unknown command \"relay\"\n")
			return 1, nil
		}}, "a", []string{"its image does not know 'tombolo-apiserver relay'", `unknown command "relay"`, "fix: bring Tombolo there to the version"}},
		{"other program", &podtest.Server{Run: func(_, _ string, _ []string, s podtest.Streams) (int, error) {
			io.WriteString(s.Out, "hello, I am something else\n")
			return 0, nil
		}}, "a", []string{"its image does not know", "I am something else"}},
		{"no such program", &podtest.Server{Run: func(_, _ string, _ []string, s podtest.Streams) (int, error) {
			return 0, errors.New(`exec: "tombolo-apiserver": executable file not found`)
		}}, "a", []string{"could not be run in container apiserver", "executable file not found"}},
		{"forbidden", &podtest.Server{ExecStatus: http.StatusForbidden}, "a",
			[]string{"pods/exec is forbidden: not for you", "fix: the user of this context needs a role in namespace tombolo-system with create and get of pods/exec"}},
		{"signed out", &podtest.Server{ExecStatus: http.StatusUnauthorized}, "a", []string{"sign in again"}},
		{"pod has gone", &podtest.Server{}, "b", []string{`pods "b" not found`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.s.Pods = servers("a")
			conn, err := open(t, c.s).Dial(t.Context(), Target{Program: APIServer, Pod: c.pod})
			if err == nil {
				conn.Close()
				t.Fatal("no error")
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("lacks %q: %v", want, err)
				}
			}
		})
	}
}

// A relay that says nothing does not hold the caller longer than it wants to wait.
func TestDialGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := &podtest.Server{Pods: servers("a"), Run: func(_, _ string, _ []string, s podtest.Streams) (int, error) {
		cancel(errors.New("enough"))
		io.Copy(io.Discard, s.In)
		return 0, nil
	}}
	if _, err := open(t, s).Dial(ctx, Target{Program: APIServer, Pod: "a"}); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	waiting, lost, unready := servers("waiting")[0], servers("lost")[0], servers("unready")[0]
	waiting.Status = corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "apiserver", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}}}}}
	lost.Spec.NodeName = ""
	lost.Status = corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/2 nodes"}}}
	unready.Status.Conditions = nil
	other := podtest.Pod("elsewhere", "x", APIServer.Label, APIServer.Container, "n")
	for _, c := range []struct {
		name string
		s    *podtest.Server
		node string
		want string
		says []string
	}{
		{name: "ready ones first", s: &podtest.Server{Pods: append([]corev1.Pod{unready}, servers("b", "a")...)}, want: "a b unready"},
		{name: "not ready is better than none", s: &podtest.Server{Pods: []corev1.Pod{waiting, unready}}, want: "unready"},
		{name: "on a node", s: &podtest.Server{Pods: servers("b", "a")}, node: "node-b", want: "b"},
		{name: "none on that node", s: &podtest.Server{Pods: servers("b", "a")}, node: "node-c", says: []string{`on node "node-c"`, "one of the nodes node-a, node-b"}},
		{name: "none runs", s: &podtest.Server{Pods: []corev1.Pod{waiting, lost}}, says: []string{"pod waiting waits: ImagePullBackOff: no such image; pod lost is on no node: Unschedulable: 0/2 nodes", "kubectl --context aws describe pod -n tombolo-system"}},
		{name: "none", s: &podtest.Server{}, says: []string{"has no pod of the mesh API server", "fix: install Tombolo there"}},
		{name: "elsewhere", s: &podtest.Server{Pods: []corev1.Pod{other}}, says: []string{"give -n with one of elsewhere"}},
		{name: "forbidden", s: &podtest.Server{ListStatus: http.StatusForbidden}, says: []string{"cannot list pods", "not for you", "get and list of pods"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			targets, err := open(t, c.s).Find(t.Context(), APIServer, c.node)
			var names []string
			for _, target := range targets {
				names = append(names, target.Pod)
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			for _, want := range c.says {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("lacks %q: %v", want, err)
				}
			}
			if c.says == nil && err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	file := (&podtest.Server{}).Start(t, "aws", "gcp")
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		cfg  Config
		says string
	}{
		{Config{Kubeconfig: []string{file}, Context: "azure"}, "has no context \"azure\"\nfix: give one of aws, gcp"},
		{Config{Kubeconfig: []string{filepath.Join(dir, "none")}}, "fix: name one with --kubeconfig"},
		{Config{Kubeconfig: []string{write("empty", "apiVersion: v1\nkind: Config\n")}}, "holds no context"},
		{Config{Kubeconfig: []string{write("no-current", "apiVersion: v1\nkind: Config\ncontexts: [{name: a, context: {cluster: c}}]\n")}}, "has no current context\nfix: give --context, one of a"},
		{Config{Kubeconfig: []string{write("broken", "{")}}, "cannot be read"},
		{Config{Kubeconfig: []string{write("dangling", "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: c}}]\n")}}, `context "a"`},
	} {
		if _, err := Open(c.cfg); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q", c.cfg, err, c.says)
		}
	}
	c, err := Open(Config{Kubeconfig: []string{file}, Context: "gcp", Namespace: "x"})
	if err != nil {
		t.Fatal(err)
	}
	c.rest.Host = "http://127.0.0.1:1"
	if c.client, err = newClient(c.rest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Find(t.Context(), Agent, ""); err == nil || !strings.Contains(err.Error(), "the Kubernetes API server http://127.0.0.1:1 does not answer") {
		t.Error(err)
	}
}
