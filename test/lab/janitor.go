package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const janitorEnv = "TOMBOLO_LAB_JANITOR"

// Janitor must be called first thing in main and TestMain of whatever makes
// labs: in the janitor process it does not return.
func Janitor() {
	spec := os.Getenv(janitorEnv)
	if spec == "" {
		return
	}
	id, dir, _ := strings.Cut(spec, ":")
	// The owner holds the other end; it closes when the owner dies, however it dies.
	word, _ := io.ReadAll(os.Stdin)
	if string(word) == "dismissed" {
		os.Exit(0)
	}
	if err := Sweep(id, dir); err != nil {
		fmt.Fprintln(os.Stderr, "lab janitor:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// janitor is a process in a session of its own, so that neither Ctrl-C nor a
// kill of the owner's group ends it before it has swept.
type janitor struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func startJanitor(id, dir string) (*janitor, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), janitorEnv+"="+id+":"+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start janitor: %w", err)
	}
	return &janitor{cmd: cmd, pipe: pipe}, nil
}

func (j *janitor) dismiss() error {
	if j == nil {
		return nil
	}
	io.WriteString(j.pipe, "dismissed")
	j.pipe.Close()
	return j.cmd.Wait()
}

// Sweep removes everything a lab may have made, knowing only its ID and
// folder: processes, namespaces (and with them links, routes and programs),
// mounted BPF filesystems (and with them pins), cgroups, tunnel sockets, files.
// It is idempotent.
func Sweep(id, dir string) error {
	if id == "" || !strings.HasPrefix(filepath.Base(dir), "tombolo-") {
		return fmt.Errorf("refusing to sweep lab %q in %q: not a lab's folder", id, dir)
	}
	var errs []error
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	cgroup := filepath.Join(root, "tombolo-"+id)
	errs = append(errs, killCgroup(cgroup))
	names, _ := filepath.Glob(filepath.Join(netnsDir, "tmb-"+id+"-*"))
	for _, path := range names {
		errs = append(errs, deleteNetns(filepath.Base(path)))
	}
	mounts, _ := filepath.Glob(filepath.Join(dir, "*", "*", "bpf"))
	for _, path := range mounts {
		errs = append(errs, unmountAll(path))
	}
	errs = append(errs, removeCgroup(cgroup))
	socks, _ := filepath.Glob("/var/run/wireguard/wg" + id + "*.sock")
	for _, path := range socks {
		errs = append(errs, os.Remove(path))
	}
	errs = append(errs, os.RemoveAll(dir))
	return errors.Join(errs...)
}

func unmountAll(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // not mounted (any more)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Leftovers names whatever is still there of the lab; after Close it is empty.
func (l *Lab) Leftovers() []string {
	var left []string
	root, _ := cgroupRoot()
	for _, pattern := range []string{
		l.Dir, filepath.Join(netnsDir, "tmb-"+l.ID+"-*"), filepath.Join(root, "tombolo-"+l.ID),
		"/var/run/wireguard/wg" + l.ID + "*",
	} {
		m, _ := filepath.Glob(pattern)
		left = append(left, m...)
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, l.Dir) || strings.Contains(line, "tmb-"+l.ID) {
			left = append(left, strings.TrimSpace(line))
		}
	}
	return left
}

// Find returns the folder of a lab that was kept, by its ID.
func Find(id string) (dir string, err error) {
	dir = filepath.Join(os.TempDir(), "tombolo-"+id)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("no lab %q here: %w", id, err)
	}
	return dir, nil
}
