package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// space is a network namespace without a name: it ends, with all that is in it,
// when the last process that holds it does. So nothing of a run that was killed
// stays behind.
type space struct{ ns *os.File }

func newSpace() (*space, error) {
	type made struct {
		ns  *os.File
		err error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: fmt.Errorf("new network namespace: %w", err)}
			return
		}
		ns, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		done <- made{ns, err}
	}()
	m := <-done
	if m.err != nil {
		return nil, m.err
	}
	return &space{m.ns}, nil
}

func (s *space) close() { s.ns.Close() }

// path is what others in this process open it by.
func (s *space) path() string { return fmt.Sprintf("/proc/self/fd/%d", s.ns.Fd()) }

// in runs fn on a thread in the namespace. Processes that fn starts are in it.
func (s *space) in(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as above
		if err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// sysctl sets values below /proc/sys/net.
func (s *space) sysctl(values map[string]string) error {
	return s.in(func() error {
		for name, v := range values {
			if err := os.WriteFile("/proc/sys/net/"+strings.ReplaceAll(name, ".", "/"), []byte(v), 0); err != nil {
				return fmt.Errorf("sysctl net.%s: %w", name, err)
			}
		}
		return nil
	})
}
