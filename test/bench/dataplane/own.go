package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/bpf"
)

const ownEnv = "TOMBOLO_BENCH_OWN"

// inOwnNamespaces runs this program again as the first process of its own
// process and mount namespaces, and returns its exit code; in that process it
// returns -1. However that process ends, all processes it started end with it,
// and its mounts go.
func inOwnNamespaces() (code int, err error) {
	if os.Getenv(ownEnv) != "" {
		return -1, settle()
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	removeStale()
	runtime.LockOSThread() // the child is killed when the thread ends that made it
	// Setting up and loading, kube-proxy's too, go before what else the machine does.
	// It is this thread's, and so the child's.
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -15); err != nil {
		return 0, fmt.Errorf("set own priority: %w", err)
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", ownEnv, os.Getpid()))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start in namespaces of its own: %w", err)
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	removeStale()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if exit.ExitCode() < 0 {
			return 1, err
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// settle makes mounts private, and /proc that of the process namespace.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

const marker = "tombolo-dataplane-"

// workplace is a run's folder, BPF filesystem and cgroup.
type workplace struct{ dir, bpffs, cgroup string }

func newWorkplace() (*workplace, func(), error) {
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", marker, outerPID()))
	if err != nil {
		return nil, nil, err
	}
	p := &workplace{dir: dir, bpffs: filepath.Join(dir, "bpf")}
	cleanup := func() {
		unix.Unmount(p.bpffs, unix.MNT_DETACH)
		if p.cgroup != "" {
			removeCgroup(p.cgroup)
		}
		os.RemoveAll(dir)
	}
	if err := p.make(); err != nil {
		cleanup()
		return nil, nil, err
	}
	return p, cleanup, nil
}

func (p *workplace) make() error {
	if err := os.Mkdir(p.bpffs, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", p.bpffs, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	root, err := bpf.FindCgroup2()
	if err != nil {
		return err
	}
	cgroup := filepath.Join(root, filepath.Base(p.dir))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return err
	}
	p.cgroup = cgroup
	return nil
}

// outerPID is the process that started this one, as all processes know it; in
// tests, this one.
func outerPID() int {
	if pid, err := strconv.Atoi(os.Getenv(ownEnv)); err == nil {
		return pid
	}
	return os.Getpid()
}

// removeStale removes folders and cgroups of runs that were killed.
func removeStale() {
	root, err := bpf.FindCgroup2()
	if err != nil {
		return
	}
	for _, parent := range []string{os.TempDir(), root} {
		found, _ := filepath.Glob(filepath.Join(parent, marker+"*"))
		for _, path := range found {
			number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), marker), "-")
			pid, err := strconv.Atoi(number)
			if err != nil || pid != os.Getpid() && unix.Kill(pid, 0) == nil {
				continue
			}
			if parent == root {
				removeCgroup(path)
			} else {
				os.RemoveAll(path)
			}
		}
	}
}

// removeCgroup removes it and those below: rmdir, deepest first.
func removeCgroup(path string) {
	below, _ := filepath.Glob(path + "/*/cgroup.procs")
	for _, f := range below {
		unix.Rmdir(filepath.Dir(f))
	}
	unix.Rmdir(path)
}
