package etcd_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// The stock command line of an old etcd works on a port.
func TestEtcdctl(t *testing.T) {
	etcdctl, err := exec.LookPath("etcdctl")
	if err != nil {
		t.Skip("needs etcdctl in the path")
	}
	c := newCA(t)
	mem := filled(t)
	p := serve(t, c, "", mem, within)
	caFile, cert, key := c.files(t, "operator")
	command := func(args ...string) *exec.Cmd {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		t.Cleanup(cancel)
		cmd := exec.CommandContext(ctx, etcdctl, append([]string{"--endpoints", p.addr, "--cacert", caFile, "--cert", cert, "--key", key}, args...)...)
		cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
		return cmd
	}
	for _, tc := range []struct{ args, want string }{
		{"get /a/1", "/a/1\nvalue 1\n"},
		{"get /a/ --prefix --keys-only --limit 2", "/a/0\n\n/a/1\n\n"},
		{"get /a/ --prefix --limit 3 -w fields", "\"More\" : true\n\"Count\" : 10"},
		{"get /a/ --prefix --rev 3", "value 1\n"},
		{"get /a/1 -w json", `"mod_revision":3`},
		{"endpoint status", p.addr},
		{"get /b/ --prefix", "permission denied: operator may not read"},
		{"get / --from-key", "permission denied"},
		{"get /a/ --prefix --rev 3000", "future revision"},
		{"put /a/1 x", "only reads"},
		{"del /a/1", "only reads"},
		{"lease grant 5", "only reads"},
		{"member list", "only reads"},
		{"compaction 5", "only reads"},
		{"user list", "only reads"},
	} {
		out, _ := command(strings.Fields(tc.args)...).CombinedOutput()
		if !strings.Contains(string(out), tc.want) {
			t.Errorf("etcdctl %s:\n%s\nlacks %q", tc.args, out, tc.want)
		}
	}
	for _, args := range []string{"watch /a/ --prefix --rev 2", "watch /a/ --prefix"} {
		cmd := command(strings.Fields(args)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if strings.Contains(args, "rev") {
			expect(t, lines, "PUT", "/a/0", "value 0", "PUT", "/a/1")
		} else {
			deadline := time.Now().Add(20 * time.Second)
			for readers(p)["operator"].Watches == 0 && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			commit(t, mem, kvstore.Put("/a/new", []byte("fresh"), 0), kvstore.Delete("/a/0"))
			expect(t, lines, "PUT", "/a/new", "fresh", "DELETE", "/a/0")
		}
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // it was killed
		deadline := time.Now().Add(20 * time.Second)
		for readers(p)["operator"].Watches != 0 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
	}
}

func expect(t *testing.T, lines *bufio.Scanner, want ...string) {
	t.Helper()
	for _, w := range want {
		if !lines.Scan() || lines.Text() != w {
			t.Fatalf("etcdctl printed %q, want %q", lines.Text(), w)
		}
	}
}
