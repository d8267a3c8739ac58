package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parse runs the command line up to the point where the server would start.
func parse(t *testing.T, args ...string) (cfg apiserver.Config, stdout string, err error) {
	t.Helper()
	var out bytes.Buffer
	cmd := command(&out, &out, func(_ context.Context, c apiserver.Config) error {
		cfg = c
		return c.Validate()
	})
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return cfg, out.String(), err
}

func TestFlags(t *testing.T) {
	good := []string{"--cluster", "aws", "--cluster-id", "1", "--state-dir", t.TempDir(), "--manifests", t.TempDir(), "--listen", "127.0.0.1:0", "--socket", "/tmp/x.sock"}
	cfg, _, err := parse(t, append(good, "--pod-prefix", "10.1.0.0/16", "--pod-prefix", "fd00:1::/32", "--advertise", "a:1,b:2")...)
	if err != nil || len(cfg.PodPrefixes) != 2 || len(cfg.Advertise) != 2 {
		t.Fatalf("%v, %+v", err, cfg)
	}
	for _, c := range []struct {
		more []string
		want string
	}{
		{[]string{"--cluster", "No Name"}, "not a DNS label"},
		{[]string{"--cluster-id", "4096"}, "not between 1 and 4095"},
		{[]string{"--manifests", ""}, "or --kubernetes"},
		{[]string{"--kubernetes"}, "exclude one another"},
		{[]string{"--kube-context", "x"}, "give --kubernetes, too"},
		{[]string{"--manifests", "", "--kubernetes", "--kubeconfig", "/nowhere"}, "correct --kubeconfig"},
		{[]string{"--pod-prefix", "10.1"}, `--pod-prefix: "10.1" is no prefix`},
		{[]string{"--pod-prefix", "10.1.2.0/16"}, "write 10.1.0.0/16"},
		{[]string{"--pod-prefix", "10.1.0.0/16,10.1.2.0/24"}, "overlap"},
		{[]string{"--advertise", "mesh.example"}, `--advertise: "mesh.example" is neither`},
		{[]string{"--ca-cert", "x"}, "belong together"},
		{[]string{"--ca-secret", "x"}, "--ca-secret needs --kubernetes"},
		{[]string{"--ca-secret-supplied"}, "--ca-secret-supplied says who makes"},
		{[]string{"--etcd-endpoints", "https://e:2379", "--etcd-cert", "x"}, "belong together"},
		{[]string{"--etcd-endpoints", "https://e:2379", "--etcd-ca", "/nowhere"}, "--etcd-ca"},
		{[]string{"--log-level", "loud"}, `"loud" is not one of`},
		{[]string{"stray"}, "unknown command"},
	} {
		if _, _, err := parse(t, append(good, c.more...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, expected %q", c.more, err, c.want)
		}
	}
}

// A mesh API server and an agent may share a machine without being told where
// to keep their state.
func TestDefaultStateIsItsOwn(t *testing.T) {
	var out bytes.Buffer
	cmd := command(&out, &out, func(context.Context, apiserver.Config) error { return nil })
	if got := cmd.Flags().Lookup("state-dir").DefValue; got != "/var/lib/tombolo/apiserver" {
		t.Errorf("--state-dir is %s by default", got)
	}
}

func TestHelpAndVersion(t *testing.T) {
	_, help, err := parse(t, "--help")
	if err != nil || !strings.Contains(help, "Examples:") || !strings.Contains(help, "--etcd-endpoints") {
		t.Errorf("%v\n%s", err, help)
	}
	_, text, err := parse(t, "--version")
	if err != nil || !strings.HasPrefix(text, "tombolo-apiserver ") {
		t.Errorf("%v, %q", err, text)
	}
}

// The whole server starts, leads, answers and stops; a second one on its state
// directory is refused.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--cluster", "aws", "--cluster-id", "1", "--state-dir", dir + "/s", "--manifests", dir, "--listen", "127.0.0.1:0", "--socket", dir + "/a.sock", "--metrics", "127.0.0.1:0"}
	cfg, _, err := parse(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // twice: the second start finds what the first left
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		ready := make(chan struct{})
		again := cfg
		again.Ready = func() { close(ready) }
		done := make(chan error, 1)
		go func() { done <- apiserver.Run(ctx, again) }()
		select {
		case <-ready:
		case err := <-done:
			t.Fatal(err)
		}
		if err := apiserver.Run(ctx, cfg); err == nil || !strings.Contains(err.Error(), "another mesh API server uses it") {
			t.Errorf("a second server: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
