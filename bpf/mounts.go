package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// FindCgroup2 is where the cgroup2 hierarchy is mounted: /sys/fs/cgroup, or
// /sys/fs/cgroup/unified beside v1.
func FindCgroup2() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 36 35 98:0 /root /mount/point options [optional…] - type source options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return unescape(fields[4]), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	return "", errors.New("no cgroup2 file system is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or give its path")
}

// cgroup2At is where the cgroup2 hierarchy is that path names: path itself, or
// its folder "unified", where systemd mounts it on nodes that still have v1
// (systemd.unified_cgroup_hierarchy=0, "hybrid").
func cgroup2At(path string) (string, error) {
	for _, dir := range []string{path, filepath.Join(path, "unified")} {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err != nil && dir == path {
			return "", fmt.Errorf("cgroup %s: %w", path, err)
		}
		if err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%s is not a cgroup of version 2, and has no such hierarchy below it as \"unified\": "+
		"give the path where cgroup2 is mounted (findmnt -t cgroup2), or mount it (mount -t cgroup2 none PATH)", path)
}

// unescape undoes mountinfo's octal escapes of white space and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// checkBPFFS says what to do if pins cannot live in dir.
func checkBPFFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("pin directory %s: %w", dir, err)
	}
	if uint32(st.Type) != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin directory %s is not on a bpffs: mount one there or above it (mount -t bpf bpffs %s)", dir, dir)
	}
	return nil
}

// lockDir makes sure that one process at a time loads and attaches. The lock ends
// with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another agent is using %s: stop it, or give this one a directory of its own", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}
