package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/deploy/request"
)

const nobody = `{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a}}],
clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}]}`

// Usage is told from failure by the exit status, and both say what to do.
func TestStatus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(nobody), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(r request.Request) []string {
		r.Version = version
		arg, err := r.Argument()
		if err != nil {
			t.Fatal(err)
		}
		return []string{arg}
	}
	for _, c := range []struct {
		name   string
		args   []string
		status int
		want   string
	}{
		{"by hand", nil, 2, "run 'tombolo install --help' instead"},
		{"by hand, with a flag", []string{"--help"}, 2, "run 'tombolo install --help' instead"},
		{"another release", []string{`{"Verb":"check","Version":"v0"}`}, 2, "take both from one release"},
		{"another verb", ask(request.Request{Verb: "explode", Kubeconfigs: []string{path}}), 1, `no verb "explode"`},
		{"no kubeconfig", ask(request.Request{Verb: "check", Kubeconfigs: []string{path + "-none"}}), 1, "give --kubeconfig FILE"},
		{"no such context", ask(request.Request{Verb: "check", Kubeconfigs: []string{path}, Context: "b"}), 1, `"b" does not exist`},
		{"nobody there", ask(request.Request{Verb: "check", Pre: true, Kubeconfigs: []string{path}}), 1, "kube-apiserver does not answer"},
		{"values", ask(request.Request{Verb: "install", Set: []string{"a"}, Kubeconfigs: []string{path}}), 1, "write it as key.of.the.chart=value"},
		{"file of values", ask(request.Request{Verb: "install", Files: []string{"/nowhere"}, Kubeconfigs: []string{path}}), 1, "/nowhere"},
		{"uninstall of nothing", ask(request.Request{Verb: "uninstall", Kubeconfigs: []string{path}}), 1, "kube-apiserver does not answer"},
	} {
		var out, stderr bytes.Buffer
		if status := run(c.args, &out, &stderr); status != c.status || !strings.Contains(stderr.String(), c.want) || out.Len() > 0 {
			t.Errorf("%s: status %d, %q, %q; want %d and %q", c.name, status, stderr.String(), out.String(), c.status, c.want)
		}
	}
}
