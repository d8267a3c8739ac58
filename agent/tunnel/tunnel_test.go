package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// The test binary is also the tunnel process, and the TCP server of the test.
func TestMain(m *testing.M) {
	switch os.Getenv("TUNNEL_TEST_ROLE") {
	case "tunnel":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		err := Run(ctx, Config{Device: os.Getenv("TUNNEL_TEST_DEVICE")})
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "echo":
		l, err := net.Listen("tcp", os.Getenv("TUNNEL_TEST_ADDR"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("listening")
		for {
			c, err := l.Accept()
			if err != nil {
				os.Exit(1)
			}
			go func() { io.Copy(c, c); c.(*net.TCPConn).CloseWrite() }()
		}
	case "dial":
		if err := dialEcho(os.Getenv("TUNNEL_TEST_ADDR")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// dialEcho sends 4 MiB and wants them back.
func dialEcho(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	data := bytes.Repeat([]byte("tombolo "), 512<<10)
	go func() { c.Write(data); c.(*net.TCPConn).CloseWrite() }()
	back, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("sent %d bytes, %d other ones came back", len(data), len(back))
	}
	return nil
}

var counter atomic.Int32

// unique is a name of at most 15 bytes that no other run uses.
func unique() string { return fmt.Sprintf("tt%x-%d", os.Getpid(), counter.Add(1)) }

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func netns(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	name := unique()
	ip(t, "netns", "add", name)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	ip(t, "-n", name, "link", "set", "lo", "up")
	return name
}

// self starts this binary in ns in a role.
func self(t *testing.T, ns, role string, env ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", ns, os.Args[0])
	cmd.Env = append(append(os.Environ(), "TUNNEL_TEST_ROLE="+role), env...)
	var log bytes.Buffer
	cmd.Stderr = &log
	return cmd, &log
}

// startTunnel starts a tunnel process and waits until it can be configured.
func startTunnel(t *testing.T, ns, device string) *exec.Cmd {
	t.Helper()
	cmd, log := self(t, ns, "tunnel", "TUNNEL_TEST_DEVICE="+device)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.Remove(SocketPath(device))
	})
	wg, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer wg.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err = wg.Device(device); err == nil {
			return cmd
		}
		if time.Now().After(end) {
			t.Fatalf("tunnel %s did not come up: %v: %s", device, err, log)
		}
	}
}

// pair is two namespaces joined by a veth (192.0.2.1, .2) with a tunnel each:
// 10.99.0.n and fd99::n.
func pair(t *testing.T) (ns, dev [2]string, procs [2]*exec.Cmd) {
	ns = [2]string{netns(t), netns(t)}
	ip(t, "-n", ns[0], "link", "add", "name", "under", "type", "veth", "peer", "name", "under", "netns", ns[1])
	wg, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer wg.Close()
	var keys [2]wgtypes.Key
	for i := range ns {
		dev[i] = unique()
		ip(t, "-n", ns[i], "addr", "add", fmt.Sprintf("192.0.2.%d/24", i+1), "dev", "under")
		ip(t, "-n", ns[i], "link", "set", "under", "up")
		procs[i] = startTunnel(t, ns[i], dev[i])
		if keys[i], err = wgtypes.GeneratePrivateKey(); err != nil {
			t.Fatal(err)
		}
	}
	port := 51999
	for i := range ns {
		peer := wgtypes.PeerConfig{PublicKey: keys[1-i].PublicKey(), Endpoint: &net.UDPAddr{IP: net.IPv4(192, 0, 2, byte(2-i)), Port: port},
			AllowedIPs: []net.IPNet{
				{IP: net.IPv4(10, 99, 0, byte(2-i)), Mask: net.CIDRMask(32, 32)},
				{IP: net.ParseIP(fmt.Sprintf("fd99::%d", 2-i)), Mask: net.CIDRMask(128, 128)},
			}}
		if err := wg.ConfigureDevice(dev[i], wgtypes.Config{PrivateKey: &keys[i], ListenPort: &port, Peers: []wgtypes.PeerConfig{peer}}); err != nil {
			t.Fatal(err)
		}
		ip(t, "-n", ns[i], "addr", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", dev[i])
		ip(t, "-n", ns[i], "addr", "add", fmt.Sprintf("fd99::%d/64", i+1), "dev", dev[i], "nodad")
		ip(t, "-n", ns[i], "link", "set", dev[i], "up")
	}
	return ns, dev, procs
}

func TestPingAndTCP(t *testing.T) {
	ns, _, _ := pair(t)
	for _, addr := range []string{"10.99.0.2", "fd99::2"} {
		if out, err := exec.Command("ip", "netns", "exec", ns[0], "ping", "-c", "2", "-i", "0.1", "-W", "5", addr).CombinedOutput(); err != nil {
			t.Fatalf("ping %s: %v: %s", addr, err, out)
		}
		target := net.JoinHostPort(addr, "7777")
		server, log := self(t, ns[1], "echo", "TUNNEL_TEST_ADDR="+target)
		out, err := server.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Process.Kill(); server.Wait() })
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "listening\n" {
			t.Fatalf("echo server: %q %v: %s", line, err, log)
		}
		client, log := self(t, ns[0], "dial", "TUNNEL_TEST_ADDR="+target)
		if err := client.Run(); err != nil {
			t.Fatalf("TCP to %s: %v: %s", target, err, log)
		}
	}
}

func TestSignalRemovesAll(t *testing.T) {
	ns, dev := netns(t), unique()
	cmd := startTunnel(t, ns, dev)
	ip(t, "-n", ns, "link", "show", dev)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("ended with %v", err)
	}
	if out, err := exec.Command("ip", "-n", ns, "link", "show", dev).CombinedOutput(); err == nil {
		t.Errorf("device is left: %s", out)
	}
	if _, err := os.Stat(SocketPath(dev)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left: %v", err)
	}
}

// A killed process leaves its socket; the next one of the same name takes over.
func TestStaleSocket(t *testing.T) {
	ns, dev := netns(t), unique()
	cmd := startTunnel(t, ns, dev)
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := os.Stat(SocketPath(dev)); err != nil {
		t.Fatalf("expected the socket to be left: %v", err)
	}
	startTunnel(t, ns, dev)
}

// Names are machine-wide, whatever the namespace.
func TestNameTaken(t *testing.T) {
	ns, dev := netns(t), unique()
	startTunnel(t, ns, dev)
	cmd, log := self(t, netns(t), "tunnel", "TUNNEL_TEST_DEVICE="+dev)
	if err := cmd.Run(); err == nil || !strings.Contains(log.String(), "another tunnel process") {
		t.Fatalf("second holder of %s: %v: %s", dev, err, log)
	}
}

func TestDeviceDeleted(t *testing.T) {
	ns, dev := netns(t), unique()
	cmd := startTunnel(t, ns, dev)
	ip(t, "-n", ns, "link", "del", dev)
	if err := cmd.Wait(); err == nil {
		t.Error("ended without an error although its device was deleted")
	}
}

func TestBadName(t *testing.T) {
	for _, name := range []string{"", "sixteen-bytes-xx", "a/b", ".."} {
		if err := Run(context.Background(), Config{Device: name}); err == nil || !strings.Contains(err.Error(), "device name") {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if got := SocketPath("x"); got != filepath.Join(SocketDir, "x.sock") {
		t.Error(got)
	}
}
