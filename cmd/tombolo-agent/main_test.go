package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent/linux"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "served by another process") {
		t.Errorf("a live socket was taken: %v", err)
	}
	// A killed process leaves its socket: nobody listens on it any more.
	l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if l, err = listen(path); err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	l.Close()
}

// Whatever the umask, at no moment is there a socket that others can reach: it
// appears at its place by being moved there, with the right mode, out of a
// directory that is closed to others.
func TestSocketIsNeverOpenToOthers(t *testing.T) {
	if path := os.Getenv("TOMBOLO_TEST_LISTEN"); path != "" {
		// In a process of its own, as the umask is the process's.
		unix.Umask(0)
		l, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		return
	}
	dir := t.TempDir()
	events, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(events)
	if _, err := unix.InotifyAddWatch(events, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.sock")
	cmd := exec.Command(os.Args[0], "-test.run=^TestSocketIsNeverOpenToOthers$")
	cmd.Env = append(os.Environ(), "TOMBOLO_TEST_LISTEN="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	buf, moved := make([]byte, 4096), false
	n, err := unix.Read(events, buf)
	if err != nil {
		t.Fatal(err)
	}
	for buf = buf[:n]; len(buf) >= unix.SizeofInotifyEvent; {
		mask, size := binary.NativeEndian.Uint32(buf[4:]), binary.NativeEndian.Uint32(buf[12:])
		name := string(bytes.TrimRight(buf[unix.SizeofInotifyEvent:][:size], "\x00"))
		buf = buf[unix.SizeofInotifyEvent+size:]
		if mask&unix.IN_CREATE != 0 && mask&unix.IN_ISDIR == 0 {
			t.Errorf("%s was made where others can reach it before its mode is set", name)
		}
		moved = moved || mask&unix.IN_MOVED_TO != 0 && name == filepath.Base(path)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || !moved {
		t.Errorf("the socket: %v %v, moved %v", st, err, moved)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLockState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	lock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockState(dir); err == nil || !strings.Contains(err.Error(), "in use by a running agent") {
		t.Errorf("locked twice: %v", err)
	}
	lock.Close()
	if lock, err = lockState(dir); err != nil {
		t.Fatal(err)
	}
	lock.Close()
}

func TestStarting(t *testing.T) {
	w := httptest.NewRecorder()
	starting(nil, func() string { return "the node is not registered" }).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), `"the agent is starting: the node is not registered"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Pods are let go of before the agent knows anything of the cluster.
func TestStartingDeletes(t *testing.T) {
	pods, err := linux.OpenPods(linux.PodsConfig{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer pods.Close()
	h := starting(pods, func() string { return "it waits" })
	for path, code := range map[string]int{"/v1/pods/del": http.StatusOK, "/v1/pods/add": http.StatusServiceUnavailable} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(`{"containerID":"c1","ifName":"eth0","uid":"nobody-has-this"}`)))
		if w.Code != code {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "--node is not set"},
		{"--node n --log-level loud", "allowed are debug, info, warn, error"},
		{"extra", "unknown command"},
		{"--node n --cni-mode beside", "allowed are main, chained"},
		{"--node n --cni-bin-dir /opt/cni/bin", "go together"},
		{"--node n --cni-conf-name tombolo.conf", "ends in .conflist"},
		{"cleanup --cni-conf-dir /etc/cni/net.d", "go together"},
		{"tunnel --device much-too-long-a-name", "device name"},
	} {
		cmd := newCommand()
		cmd.SetArgs(strings.Fields(c.args))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
	if _, err := parseAddrs([]string{"192.0.2.1", "nonsense"}); err == nil || !strings.Contains(err.Error(), `--underlay "nonsense"`) {
		t.Error(err)
	}
	for _, sub := range []string{"--help", "tunnel --help", "cleanup --help", "relay --help"} {
		var out bytes.Buffer
		cmd := newCommand()
		cmd.SetArgs(strings.Fields(sub))
		cmd.SetOut(&out)
		if err := cmd.Execute(); err != nil || !strings.Contains(out.String(), "Examples:") {
			t.Errorf("%s: %v: %s", sub, err, out.String())
		}
	}
}

// The node agent carries neither a Kubernetes client nor an etcd server.
func TestLinkedPackages(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Skipf("go list does not work here: %s", exit.Stderr)
		}
		t.Skip(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "k8s.io/") || strings.HasPrefix(line, "go.etcd.io/etcd/server") || strings.Contains(line, "kvstore/etcd/embed") {
			t.Errorf("linked: %s", line)
		}
	}
}

// An agent and a mesh API server may share a machine without being told where to
// keep their state; cleaning up takes the agent's.
func TestDefaultStateIsItsOwn(t *testing.T) {
	root := newCommand()
	clean, _, err := root.Find([]string{"cleanup"})
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*cobra.Command{root, clean} {
		if got := cmd.Flags().Lookup("state-dir").DefValue; got != "/var/lib/tombolo/agent" {
			t.Errorf("%s: --state-dir is %s by default", cmd.Name(), got)
		}
	}
}
