package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Process is a process of the lab, running in a host's namespace and cgroup.
type Process struct {
	Name string
	Log  string // path of its standard error
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// start runs a command on h. Standard error goes to a log file that is appended
// to; standard output to stdout, or to the same file.
func (h *host) start(dir, name string, stdin io.Reader, stdout io.Writer, argv ...string) (*Process, error) {
	log := filepath.Join(dir, name+".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cg, err := os.Open(h.cgroup)
	if err != nil {
		return nil, err
	}
	defer cg.Close()
	p := &Process{Name: name, Log: log, done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdin = stdin
	p.cmd.Stderr = f
	p.cmd.Stdout = f
	if stdout != nil {
		p.cmd.Stdout = stdout
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd()), Setpgid: true}
	if err := h.in(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// run runs a command on h to its end and returns its standard output.
func (h *host) run(ctx context.Context, env []string, stdin string, argv ...string) (string, error) {
	cg, err := os.Open(h.cgroup)
	if err != nil {
		return "", err
	}
	defer cg.Close()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	cmd.WaitDelay = time.Second
	if err := h.in(cmd.Start); err != nil {
		return "", fmt.Errorf("start %s on %s: %w", argv[0], h.name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s on %s: %w: %s%s", strings.Join(argv, " "), h.name, err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// Pid of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends sig to the process, if it still runs.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
		return p.cmd.Process.Signal(sig)
	}
}

// Kill ends the process at once (SIGKILL) and waits for its end.
func (p *Process) Kill() {
	if p == nil {
		return
	}
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks the process to end (SIGTERM) and kills it after grace.
func (p *Process) Stop(grace time.Duration) {
	if p == nil {
		return
	}
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		p.Kill()
	}
}

// tail is the end of the process's log, for error messages.
func (p *Process) tail() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// await polls ready until it returns nil; it fails early when p ends.
func await(ctx context.Context, what string, p *Process, ready func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		var done <-chan struct{}
		if p != nil {
			done = p.done
		}
		select {
		case <-done:
			return fmt.Errorf("%s: the process ended (%v); the end of %s:\n%s", what, p.err, p.Log, p.tail())
		case <-ctx.Done():
			if p != nil {
				return fmt.Errorf("%s: %w; last answer: %w; the end of %s:\n%s", what, context.Cause(ctx), err, p.Log, p.tail())
			}
			return fmt.Errorf("%s: %w; last answer: %w", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
