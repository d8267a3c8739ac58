package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Child processes of these tests are this very executable, told by its first
// argument what to be. They take that turn before any test code runs.
var children = map[string]func(args []string) error{}

func init() {
	children["lab-owner"] = ownLab
	children["lab-etcd"] = runEtcd
	if len(os.Args) < 2 || children[os.Args[1]] == nil {
		return
	}
	if os.Getenv(janitorEnv) != "" {
		return // the janitor of such a child: TestMain knows what to do
	}
	if err := children[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// ownLab makes a lab with a running cluster, says its ID, and waits to be killed.
func ownLab(args []string) error {
	ctx := context.Background()
	l, err := New(ctx, Options{BinDir: args[0]})
	if err != nil {
		return err
	}
	c, err := l.AddCluster("aws", 1)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if _, err := l.AddCluster("gcp", 1); err != nil {
		return errors.Join(err, l.Close())
	}
	if _, err := l.Delay(time.Millisecond, 0, 1); err != nil {
		return errors.Join(err, l.Close())
	}
	if err := c.Start(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	if _, err := c.Nodes[0].AddPod(ctx, PodSpec{Name: "server", Port: 8080, Argv: ServeArgv("aws/server", 8080)}); err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Println(l.ID, l.Dir)
	select {}
}

// A lab whose owner is killed leaves nothing: the janitor sweeps.
func TestJanitor(t *testing.T) {
	t.Parallel()
	r := newEmptyRig(t, Options{}) // takes a turn, and skips without root; its own lab stays empty
	exe := must(os.Executable())(t)
	cmd := exec.CommandContext(r.ctx, exe, "lab-owner", r.opts.BinDir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out := must(cmd.StdoutPipe())(t)
	noError(t, cmd.Start())
	line := make([]byte, 256)
	n, err := out.Read(line)
	noError(t, err)
	var orphan Lab
	if _, err := fmt.Sscan(string(line[:n]), &orphan.ID, &orphan.Dir); err != nil {
		t.Fatalf("%q: %v", line[:n], err)
	}
	if left := orphan.Leftovers(); len(left) < 10 {
		t.Errorf("too little to sweep for a test: %v", left)
	}
	noError(t, cmd.Process.Kill())
	cmd.Wait()
	begin := time.Now()
	r.eventually(20*time.Second, "the janitor swept", func() error {
		if left := orphan.Leftovers(); len(left) > 0 {
			return fmt.Errorf("%d things left: %v", len(left), left)
		}
		if pids := mentioning(orphan.Dir); len(pids) > 0 {
			return fmt.Errorf("processes left: %v", pids)
		}
		return nil
	})
	t.Logf("swept %.1f s after the owner was killed", time.Since(begin).Seconds())
}

// mentioning are the processes with text in their command line or environment.
func mentioning(text string) (pids []string) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		environ, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if strings.Contains(string(cmdline)+string(environ), text) {
			pids = append(pids, e.Name())
		}
	}
	return pids
}
