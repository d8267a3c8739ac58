package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
)

// lockState makes sure of one agent per state directory; the kernel lets go of
// the lock with the process.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("state directory %s is in use by a running agent (%w): stop it first, or use another --state-dir", dir, err)
	}
	return f, nil
}

// listen opens the API's socket with mode 0600. A socket that nobody serves any
// more is replaced; a live one is not.
func listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s is served by another process: stop it, or use another --socket", path)
	} else if errors.Is(err, unix.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the stale socket: %w", err)
		}
	}
	l, err := listenPrivately(dir, path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// listenPrivately makes the socket in a directory of its own, which nobody else
// can enter, and moves it to its place when its mode is right: until then the
// mode is what the umask leaves, and whoever connects in between stays connected.
func listenPrivately(dir, path string) (net.Listener, error) {
	private, err := os.MkdirTemp(dir, ".agent-") // mode 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	at, err := os.Open(private)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	// By way of /proc, as the longer name might not fit into an address.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/s", at.Fd()), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	tmp := filepath.Join(private, "s")
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// api serves one handler after another: first one that says what the agent
// waits for, then the agent's own.
type api struct{ handler atomic.Pointer[http.Handler] }

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*a.handler.Load()).ServeHTTP(w, r) }

func (a *api) set(h http.Handler) { a.handler.Store(&h) }

// starting answers every request with why there is nothing to answer yet. Pods (nil =
// not opened yet) are let go of: the kubelet can delete them whatever the agent waits
// for.
func starting(pods *linux.Pods, why func() string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		json.NewEncoder(w).Encode(map[string]string{"error": "the agent is starting: " + why()})
	})
	if pods != nil {
		mux.Handle("POST /v1/pods/del", agent.ServeDel(pods.Del))
	}
	return mux
}
