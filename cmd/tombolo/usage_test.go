package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func TestWrongUsage(t *testing.T) {
	for _, c := range []struct {
		line string
		says []string
	}{
		{"stauts", []string{`unknown command "stauts"`, "did you mean status?"}},
		{"mesh jion", []string{`unknown command "jion" for 'tombolo mesh'`, "did you mean join?"}},
		{"frobnicate", []string{"there are check, completion, demo, endpoints, flows, install, maps"}},
		{"help mesh jion", []string{"did you mean join?"}},
		{"status --agent-sock x", []string{"did you mean --agent-socket?", "usage: tombolo status"}},
		{"status --nope", []string{"unknown flag --nope for 'tombolo status'"}},
		{"demo --clusters two", []string{`invalid argument "two"`, "usage: tombolo demo"}},
		{"demo --clusters 1", []string{"2–16 clusters"}},
		{"demo --nodes 33", []string{"1–32 nodes"}},
		{"status extra", []string{`'tombolo status' takes no arguments, got "extra"`}},
		{"status -o yaml", []string{`unknown output "yaml": want json`}},
		{"mesh join", []string{"'tombolo mesh join' needs TOKEN", "usage: tombolo mesh join TOKEN"}},
		{"mesh join a b", []string{`got also "b"`}},
		{"mesh remove", []string{"needs CLUSTER"}},
		{"mesh drain", []string{"needs CLUSTER", "usage: tombolo mesh drain CLUSTER"}},
		{"mesh undrain a b", []string{`got also "b"`}},
		{"mesh drain gcp --over soon", []string{"invalid argument"}},
		{"mesh invite --ttl tomorrow", []string{"invalid argument"}},
		{"node invite", []string{"needs NODE"}},
		{"service explain", []string{"needs NAMESPACE/NAME"}},
		{"service explain cart", []string{`"cart" is not a service: want NAMESPACE/NAME`}},
		{"service explain a/b/c", []string{"is not a service"}},
		{"maps servces", []string{`no table "servces"; did you mean services?`}},
		{"maps peers routes", []string{`got also "routes"`}},
		{"policy trace a/b c/d", []string{"needs FROM, TO and PORT, got 2 of them", "usage: tombolo policy trace"}},
		{"policy trace a b 80", []string{`"a" is no end: want namespace/pod`}},
		{"policy trace a/b world 80/http", []string{`protocol "http" is not tcp, udp, sctp or icmp`}},
		{"policy trace --batch a", []string{`standard input, got also "a"`}},
		{"policy list -f testdata/policy --policy-clusters some", []string{`no --policy-clusters "some"; there are own, all`}},
		{"policy tarce", []string{"did you mean trace?"}},
		{"completion powershell", []string{`no completion for shell "powershell"; there are bash, zsh, fish`}},
		{"version now", []string{"takes no arguments"}},
	} {
		t.Run(c.line, func(t *testing.T) {
			got := at(t, nil, strings.Fields(c.line)...)
			if got.status != 2 || got.out != "" {
				t.Errorf("status %d, want 2; standard output %q, want none", got.status, got.out)
			}
			for _, want := range append(c.says, "error: ", "--help") {
				if !strings.Contains(got.errOut, want) {
					t.Errorf("standard error lacks %q:\n%s", want, got.errOut)
				}
			}
		})
	}
}

// distance against the plain definition by recursion.
func TestDistance(t *testing.T) {
	var slow func(a, b string) int
	slow = func(a, b string) int {
		if a == "" || b == "" {
			return len(a) + len(b)
		}
		i, j := len(a)-1, len(b)-1
		best := min(slow(a[:i], b)+1, slow(a, b[:j])+1)
		change := 1
		if a[i] == b[j] {
			change = 0
		}
		best = min(best, slow(a[:i], b[:j])+change)
		if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
			best = min(best, slow(a[:i-1], b[:j-1])+1)
		}
		return best
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.StringMatching(`[abc]{0,6}`).Draw(t, "a"), rapid.StringMatching(`[abc]{0,6}`).Draw(t, "b")
		if got, want := distance(a, b), slow(a, b); got != want {
			t.Fatalf("distance(%q, %q) = %d, want %d", a, b, got, want)
		}
	})
}

func TestSocketErrors(t *testing.T) {
	nobody := newWorld(t, nil, nil)
	left := newWorld(t, nil, nil)
	for _, path := range []string{left.vars["TOMBOLO_AGENT_SOCKET"], left.vars["TOMBOLO_APISERVER_SOCKET"]} {
		l := listen(t, path)
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	for _, c := range []struct {
		w    *world
		line string
		says []string
	}{
		{nobody, "maps", []string{"cannot reach the agent at", "no such socket", "fix: start the agent on this machine", "--agent-socket"}},
		{nobody, "mesh list", []string{"cannot reach the mesh API server at", "no such socket", "--apiserver-socket"}},
		{nobody, "status", []string{"cannot reach the agent at", "cannot reach the mesh API server at"}},
		{left, "service list", []string{"nobody listens there", "start the agent again"}},
		{left, "mesh invite", []string{"nobody listens there", "start the mesh API server again"}},
	} {
		got := c.w.at(t, strings.Fields(c.line)...)
		if got.status != 1 || got.out != "" {
			t.Errorf("%s: status %d, standard output %q", c.line, got.status, got.out)
		}
		for _, want := range c.says {
			if !strings.Contains(got.errOut, want) {
				t.Errorf("%s: standard error lacks %q:\n%s", c.line, want, got.errOut)
			}
		}
	}
}

func TestDeniedSocket(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may open every socket")
	}
	w := newWorld(t, map[string]any{}, nil)
	os.Chmod(filepath.Dir(w.vars["TOMBOLO_AGENT_SOCKET"]), 0)
	if got := w.at(t, "maps"); got.status != 1 || !strings.Contains(got.errOut, "fix: run this as root") {
		t.Errorf("status %d: %s", got.status, got.errOut)
	}
}

// A refusal of the mesh API server arrives with its cause and its fix, and
// cannot do anything to a terminal.
func TestRefusals(t *testing.T) {
	withDetail, err := status.New(codes.FailedPrecondition, "join refused").WithDetails(
		&pb.Problem{What: "join refused", Why: "name \x1b]0;owned\a is taken", Fix: "choose another"})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, nil, &fakeAdmin{refuse: withDetail.Err()})
	want := "error: join refused\ncause: name \\u001b]0;owned\\u0007 is taken\nfix: choose another\n"
	if got := w.at(t, "mesh", "join", "token"); got != (answer{1, "", want}) {
		t.Errorf("got %+v", got)
	}
	w.admin.refuse = status.Error(codes.PermissionDenied, "not you")
	for _, line := range []string{"mesh list", "mesh invite", "mesh join t", "mesh leave", "mesh remove gcp", "mesh drain gcp", "mesh undrain gcp", "mesh records", "mesh confirm-deletes", "node invite n1"} {
		if got := w.at(t, strings.Fields(line)...); got != (answer{1, "", "error: not you\n"}) {
			t.Errorf("%s: got %+v", line, got)
		}
	}
	agent := newWorld(t, map[string]any{}, nil)
	if got := agent.at(t, "service", "explain", "shop/none"); got.status != 1 || got.errOut != "error: no such thing: \\u001b[31m/v1/services/shop/none\n" {
		t.Errorf("got %+v", got)
	}
}

func TestColour(t *testing.T) {
	for _, c := range []struct {
		terminal bool
		vars     map[string]string
		want     bool
	}{
		{true, nil, true},
		{false, nil, false},
		{true, map[string]string{"NO_COLOR": "1"}, false},
		{true, map[string]string{"TERM": "dumb"}, false},
		{true, map[string]string{"TERM": "xterm-256color"}, true},
	} {
		e := environment{Terminal: c.terminal, Getenv: func(name string) string { return c.vars[name] }}
		if e.colour() != c.want {
			t.Errorf("terminal %v, %v: colour %v", c.terminal, c.vars, !c.want)
		}
	}
}
