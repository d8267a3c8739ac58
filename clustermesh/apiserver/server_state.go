package apiserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// stateDir is the state directory, locked: no other process uses it.
type stateDir struct {
	dir     string
	replica string
	lock    *os.File
}

func openState(dir string) (*stateDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errors.New("another mesh API server uses it; stop that one, or give this one a --state-dir of its own")
		}
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	s := &stateDir{dir: dir, lock: lock}
	if s.replica, err = replicaName(dir); err != nil {
		lock.Close()
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	return s, nil
}

// close lets go of the lock; the kernel does so too when the process dies.
func (s *stateDir) close() { s.lock.Close() }
