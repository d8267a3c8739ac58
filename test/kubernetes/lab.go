package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Lab is a lab of lab/up.sh, and its powers: power cuts, partitions, programs
// stopped, commands inside of machines.
type Lab struct {
	Dir     string
	scripts string
	bin     string
	borrow  bool // somebody else's: used and left
}

// openLab brings up two clusters of two nodes with neither CNI nor kube-proxy; for
// Tombolo chained, with both.
func (w *World) openLab(ctx context.Context) error {
	bin, err := filepath.Abs(w.labBin)
	if err != nil {
		return err
	}
	w.labBin = bin
	scripts, err := filepath.Abs(w.labScripts)
	if err != nil {
		return err
	}
	w.labScripts = scripts
	if w.labDir != "" {
		w.Lab = &Lab{Dir: w.labDir, scripts: scripts, bin: bin, borrow: true}
		return w.addLabClusters()
	}
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root (network and mount namespaces): run it with sudo, or give -contexts")
	}
	if _, err := os.Stat(filepath.Join(bin, "kube-apiserver")); err != nil {
		return fmt.Errorf("%w: `make kubernetes-lab` builds the lab's programs", err)
	}
	dir, err := os.MkdirTemp("", "tombolo-kubernetes-")
	if err != nil {
		return err
	}
	w.Lab = &Lab{Dir: dir, scripts: scripts, bin: bin}
	if w.janitor, err = keep(w); err != nil {
		return err
	}
	images := []string{w.image}
	if w.other != "" {
		images = append(images, filepath.Join(w.other, "tombolo-image.tar"))
	}
	if err := w.Lab.up(ctx, images, w.options, w.out); err != nil {
		return fmt.Errorf("the lab did not come up: %w", err)
	}
	return w.addLabClusters()
}

func (w *World) addLabClusters() error {
	w.kubeconfig = filepath.Join(w.Lab.Dir, "kubeconfig")
	for _, name := range []string{"c1", "c2"} {
		if err := w.addCluster(name, name, w.kubeconfig); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) up(ctx context.Context, images []string, o options, out io.Writer) error {
	var paths []string
	for _, image := range images {
		path, err := filepath.Abs(image)
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: `make image` makes it", err)
		}
		paths = append(paths, path)
	}
	port, err := freePorts(2)
	if err != nil {
		return err
	}
	args := []string{"-c", "2", "-n", "2", "--skip-cni", "--mcs", "--dns"}
	if o.dual {
		args = append(args, "--dual")
	}
	if !o.chained {
		args = append(args, "--skip-proxy")
	}
	fmt.Fprintf(out, "lab: %s\n", strings.Join(args, " "))
	env := []string{"LAB_IMAGES=" + strings.Join(paths, " "), "LAB_PORT_BASE=" + strconv.Itoa(port-1)}
	if err := l.script(ctx, out, env, "up.sh", args...); err != nil || !o.chained {
		return err
	}
	return errors.Join(l.script(ctx, out, nil, "network.sh", "c1"), l.script(ctx, out, nil, "network.sh", "c2", "elsewhere"))
}

// freePorts finds n free ports in a row, below those that the kernel gives to clients.
func freePorts(n int) (first int, err error) {
	for first = 16441 + os.Getpid()%500*n; first < 30000; first += n {
		free := true
		for p := first; p < first+n && free; p++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
			if free = err == nil; free {
				l.Close()
			}
		}
		if free {
			return first, nil
		}
	}
	return 0, errors.New("no free ports for the API servers on 127.0.0.1")
}

func (l *Lab) down() error {
	if l.borrow {
		return nil
	}
	if _, err := os.Stat(filepath.Join(l.Dir, "lab.env")); err != nil {
		return os.RemoveAll(l.Dir) // up.sh did not get that far
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return l.script(ctx, os.Stderr, nil, "down.sh")
}

// script runs one of the lab's in a session of its own: Ctrl-C is for us to act on.
func (l *Lab) script(ctx context.Context, out io.Writer, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(l.scripts, name), args...)
	cmd.Env = append(append(os.Environ(), "LAB_DIR="+l.Dir, "LAB_BIN="+l.bin), env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}

func (l *Lab) do(t *T, name string, args ...string) string {
	var out bytes.Buffer
	err := l.script(t.ctx, &out, nil, name, args...)
	t.OK(err, "%s", strings.TrimSpace(out.String()))
	return out.String()
}

// Crash cuts the power of machines; Boot gives it back.
func (l *Lab) Crash(t *T, machines ...string) {
	for _, m := range machines {
		t.Logf("power cut: %s", m)
		l.do(t, "machine", "--crash", m)
	}
}

func (l *Lab) Boot(t *T, machines ...string) {
	for _, m := range machines {
		t.Logf("boot: %s", m)
		l.do(t, "machine", "--boot", m)
	}
}

// Stop takes one program of a machine down, and Start lets it come back.
func (l *Lab) Stop(t *T, machine, program string)  { l.do(t, "machine", "--stop", machine, program) }
func (l *Lab) Start(t *T, machine, program string) { l.do(t, "machine", "--start", machine, program) }

// Partition lets nothing pass between the clusters, until Heal.
func (l *Lab) Partition(t *T) { l.do(t, "fault.sh", "partition", "c1", "c2") }
func (l *Lab) Heal(t *T)      { l.do(t, "fault.sh", "clear") }

// Run runs a command in a machine; "u" is the router between the clusters.
func (l *Lab) Run(ctx context.Context, machine string, command ...string) (string, error) {
	var out bytes.Buffer
	err := l.script(ctx, &out, nil, "machine", append([]string{machine}, command...)...)
	return out.String(), err
}

// echo is the workloads' program on this machine, for machines of the lab.
func (l *Lab) echo() string { return filepath.Join(l.bin, "labecho") }
