package linux

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/agent/tunnel"
)

// The test binary is also the tunnel process of its tests.
func TestMain(m *testing.M) {
	if dev := os.Getenv("LINUX_TEST_TUNNEL"); dev != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		err := tunnel.Run(ctx, tunnel.Config{Device: dev})
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

var counter atomic.Int32

// unique is a name of at most 15 bytes that no other run uses.
func unique() string { return fmt.Sprintf("tl%x-%d", os.Getpid(), counter.Add(1)) }

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and kernel tables")
	}
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ns is a network namespace of a test.
type ns struct {
	t    testing.TB
	name string
	file *os.File
}

func newNS(t testing.TB) *ns {
	t.Helper()
	needRoot(t)
	n := &ns{t: t, name: unique()}
	command(t, "ip", "netns", "add", n.name)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", n.name).Run() })
	f, err := os.Open(n.path())
	if err != nil {
		t.Fatal(err)
	}
	n.file = f
	t.Cleanup(func() { f.Close() })
	n.ip("link", "set", "lo", "up")
	return n
}

func (n *ns) path() string { return "/run/netns/" + n.name }

// ip runs iproute2's ip inside.
func (n *ns) ip(args ...string) string {
	n.t.Helper()
	return command(n.t, "ip", append([]string{"-n", n.name}, args...)...)
}

// in runs fn on a thread inside.
func (n *ns) in(fn func() error) {
	n.t.Helper()
	if err := inNetns(n.file, fn); err != nil {
		n.t.Fatal(err)
	}
}

// ping reports whether addr answers from inside.
func (n *ns) ping(addr string, args ...string) error {
	args = append([]string{"netns", "exec", n.name, "ping", "-c", "1", "-W", "2"}, append(args, addr)...)
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %s from %s: %w: %s", addr, n.name, err, out)
	}
	return nil
}

// startTunnel starts a tunnel process inside and waits for its device.
func (n *ns) startTunnel(device string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", n.name, os.Args[0])
	cmd.Env = append(os.Environ(), "LINUX_TEST_TUNNEL="+device)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if n.t.Failed() {
			n.t.Logf("tunnel %s: %s", device, log.String())
		}
		os.Remove(tunnel.SocketPath(device))
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, serr := os.Stat(tunnel.SocketPath(device))
		err := exec.Command("ip", "-n", n.name, "link", "show", device).Run()
		if err == nil && serr == nil {
			return cmd
		}
		if time.Now().After(end) {
			n.t.Fatalf("tunnel %s did not come up: %s", device, log.String())
		}
	}
}

// openDevice opens the device inside and ensures it.
func (n *ns) openDevice(name string, port int) *Device {
	n.t.Helper()
	var d *Device
	n.in(func() (err error) {
		d, err = OpenDevice(n.t.TempDir(), name, port, nil)
		return err
	})
	n.t.Cleanup(d.Close)
	return d
}
