package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func podCommand(o *options, run func() error) *cobra.Command {
	cmd := &cobra.Command{Use: "cleanup", SilenceUsage: true, SilenceErrors: true, RunE: func(*cobra.Command, []string) error { return run() }}
	inPod(cmd, o)
	return cmd
}

// It waits for the agent, cleans, removes, tells the probe, and stays.
func TestCleanupInPod(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "lib", "tombolo")
	o := &options{stateDir: filepath.Join(state, "agent"), socket: filepath.Join(dir, "agent.sock")}
	lock, err := lockState(o.stateDir)
	if err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(dir, "done")
	cleaned := false
	cmd := podCommand(o, func() error { cleaned = true; return nil })
	cmd.SetArgs([]string{"--wait", "1m", "--remove", state, "--stay", mark})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	end := make(chan error, 1)
	probe := func() error {
		p := podCommand(o, func() error { t.Error("a probe cleans nothing"); return nil })
		p.SetArgs([]string{"--cleaned", mark})
		return p.Execute()
	}
	if probe() == nil {
		t.Error("clean before it began")
	}
	go func() { end <- cmd.ExecuteContext(ctx) }()
	lock.Close() // the agent ends
	for deadline := time.Now().Add(30 * time.Second); probe() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never clean")
		}
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("the state is still there: %v", err)
	}
	select {
	case err := <-end:
		t.Fatalf("it did not stay: %v", err)
	default:
	}
	cancel()
	if err := <-end; err != nil || !cleaned {
		t.Errorf("cleaned %v: %v", cleaned, err)
	}
}

// Another's user-space WireGuard on the node keeps its socket.
func TestCleanupSharedFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "wireguard")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tombolo0.sock", "wg0.sock"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	left := func() string {
		var names []string
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	for range 2 { // done again, it does no harm
		if err := take(dir, "tombolo0"); err != nil || left() != "wg0.sock" {
			t.Errorf("%v; %q is left", err, left())
		}
	}
	if err := os.Remove(filepath.Join(dir, "wg0.sock")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := take(dir, "tombolo0"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("the empty folder stays: %v", err)
		}
	}
}

func TestCleanupRefuses(t *testing.T) {
	o := &options{stateDir: t.TempDir(), socket: filepath.Join(t.TempDir(), "agent.sock")}
	lock, err := lockState(o.stateDir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--remove", "/"}, "want the absolute path"},
		{[]string{"--remove", "/var/lib"}, "want the absolute path"},
		{[]string{"--remove", "tombolo"}, "want the absolute path"},
		{[]string{"--wait", "1ns"}, "in use by a running agent"},
	} {
		cmd := podCommand(o, func() error { t.Error("it cleaned"); return nil })
		cmd.SetArgs(c.args)
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.args, err)
		}
	}
}
