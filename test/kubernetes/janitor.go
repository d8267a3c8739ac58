package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const janitorEnv = "TOMBOLO_TEST_KUBERNETES_JANITOR"

// keeper is a process in a session of its own that sweeps after a run that could
// not do so itself, however it ended.
type keeper struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// keep starts one that knows what the run may make: a lab's folder, or the ID on clusters.
func keep(w *World) (*keeper, error) {
	spec := []string{w.ID, w.labScripts, w.labBin, "", w.kubeconfig, w.contexts}
	if w.Lab != nil {
		spec[3] = w.Lab.Dir
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), janitorEnv+"="+strings.Join(spec, "\n"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start janitor: %w", err)
	}
	return &keeper{cmd: cmd, pipe: pipe}, nil
}

func (k *keeper) dismiss() error {
	if k == nil {
		return nil
	}
	io.WriteString(k.pipe, "dismissed")
	k.pipe.Close()
	return k.cmd.Wait()
}

// janitor does not return in the janitor's process.
func janitor() {
	text := os.Getenv(janitorEnv)
	if text == "" {
		return
	}
	os.Unsetenv(janitorEnv)
	// The run holds the other end; it closes when the run dies.
	if word, _ := io.ReadAll(os.Stdin); string(word) == "dismissed" {
		os.Exit(0)
	}
	if err := sweepFor(strings.Split(text, "\n")); err != nil {
		fmt.Fprintln(os.Stderr, "test-kubernetes janitor:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func sweepFor(spec []string) error {
	w := &World{ID: spec[0], options: options{labScripts: spec[1], labBin: spec[2], kubeconfig: spec[4], contexts: spec[5]}}
	if dir := spec[3]; dir != "" {
		return (&Lab{Dir: dir, scripts: w.labScripts, bin: w.labBin}).down()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var errs []error
	for i, name := range strings.Split(w.contexts, ",") {
		if err := w.addCluster(fmt.Sprintf("test%d", i+1), name, w.kubeconfig); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, w.Clusters[len(w.Clusters)-1].sweep(ctx, w.ID))
	}
	return errors.Join(errs...)
}
