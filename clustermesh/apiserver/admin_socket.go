package apiserver

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxSocketPath is what fits into a Unix socket address on Linux.
const maxSocketPath = 107

// ListenAdmin makes the admin socket: mode 0600, in a directory that is made
// with mode 0700 if it is not there. A socket that a dead process left behind
// is replaced; one that somebody answers on is an error.
func ListenAdmin(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("admin socket %s: the path has %d bytes, at most %d are possible; use a shorter one", path, len(path), maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := makePrivateDir(dir); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	// The socket must never be open to others, not even before chmod: it is
	// made under a name of its own in a directory of its own.
	tmp, err := os.MkdirTemp(dir, ".admin-")
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	defer os.RemoveAll(tmp)
	at, err := os.Open(tmp)
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	defer at.Close()
	// By way of /proc, as the longer name might not fit into an address.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/s", at.Fd()), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(filepath.Join(tmp, "s"), 0o600)
	if err == nil {
		err = os.Rename(filepath.Join(tmp, "s"), path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	return &socket{UnixListener: l, path: path}, nil
}

// makePrivateDir makes dir for its owner alone. One that is there already is
// left as it is (it may be /run), unless others can write to it.
func makePrivateDir(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("directory %s can be written by others; use one with mode 0700", dir)
	}
	return nil
}

// clearSocket removes what a dead process left behind.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("admin socket %s: %w", path, err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("admin socket %s: there is a file that is not a socket; remove it or choose another path", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("admin socket %s: another mesh API server is running on it; stop that one, or give this one a --socket of its own", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("admin socket %s: %w", path, err)
	}
	return os.Remove(path)
}

// socket removes its file when it is closed.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if rm := os.Remove(s.path); rm != nil && !errors.Is(rm, fs.ErrNotExist) && err == nil {
		err = rm
	}
	return err
}
