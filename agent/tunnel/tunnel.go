// Package tunnel holds a user-space WireGuard device for kernels that have no
// WireGuard of their own. It is a process by itself (`tombolo-agent tunnel`), so
// that restarting the agent does not touch the tunnel: the agent configures it
// through its UAPI socket, exactly as it would configure the kernel's.
//
// The package imports nothing of ours: it carries packets and decides nothing.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
)

// SocketDir is where wireguard-go and wgctrl meet. It is one folder for all
// network namespaces of the machine, so device names must differ machine-wide.
const SocketDir = "/var/run/wireguard"

// DefaultMTU fits an underlay of 1500: WireGuard over IPv6 costs 80 bytes. The
// agent sets the link's MTU when the underlay's differs.
const DefaultMTU = 1420

// Config of one device.
type Config struct {
	Device string // name of the TUN device, at most 15 bytes, unique on the machine
	MTU    int    // 0 = DefaultMTU
	Log    *slog.Logger
}

// SocketPath is the UAPI socket of a device.
func SocketPath(name string) string { return filepath.Join(SocketDir, name+".sock") }

// Run makes the device in the network namespace of this process and serves its
// UAPI socket until ctx ends or the device is taken away. The device
// and the socket are gone when it returns. The process must live in the node's
// namespace with all its threads: the UDP sockets open on whichever thread sees
// the link come up, and a socket in the wrong namespace loses every packet.
func Run(ctx context.Context, cfg Config) error {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("device", cfg.Device)
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if err := checkName(cfg.Device); err != nil {
		return err
	}
	// The socket first: it is the machine-wide claim on the name. A socket left
	// by a killed process refuses connections and is replaced; a live one is not.
	file, err := ipc.UAPIOpen(cfg.Device)
	if err != nil {
		return fmt.Errorf("claim socket %s: %w; another tunnel process may hold a device of this name, in any network namespace: choose another --device or stop it", SocketPath(cfg.Device), err)
	}
	tdev, err := tun.CreateTUN(cfg.Device, cfg.MTU)
	if err != nil {
		file.Close()
		os.Remove(SocketPath(cfg.Device))
		return explainTUN(cfg.Device, err)
	}
	dev := device.NewDevice(tdev, conn.NewDefaultBind(), deviceLog(log))
	defer dev.Close() // closes the TUN, and with it the link and its routes
	// Not ipc.UAPIListen, which takes an inotify instance to see its socket
	// deleted: root has 128 of them by default, for all of the machine's processes.
	uapi, err := net.FileListener(file)
	file.Close() // the listener has its own copy
	defer os.Remove(SocketPath(cfg.Device))
	if err != nil {
		return fmt.Errorf("listen on %s: %w", SocketPath(cfg.Device), err)
	}
	defer uapi.Close()

	failed := make(chan error, 1)
	go func() {
		for {
			c, err := uapi.Accept()
			if err != nil {
				failed <- err
				return
			}
			go dev.IpcHandle(c)
		}
	}()
	log.Info("tunnel device is up", "socket", SocketPath(cfg.Device), "mtu", cfg.MTU)
	select {
	case <-ctx.Done():
		log.Info("tunnel device closes")
		return nil
	case <-dev.Wait():
		return fmt.Errorf("device %s was closed from outside: its link was deleted, or its network namespace is gone", cfg.Device)
	case err := <-failed:
		return fmt.Errorf("socket %s: %w; the agent cannot configure this device any more, so it ends", SocketPath(cfg.Device), err)
	}
}

func checkName(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ || filepath.Base(name) != name || name == "." || name == ".." {
		return fmt.Errorf("device name %q: must have 1 to %d bytes and no slash", name, unix.IFNAMSIZ-1)
	}
	return nil
}

func explainTUN(name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("create TUN device %s: %w; a device of this name exists in this network namespace: choose another --device, or delete it", name, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("create TUN device %s: %w; needs CAP_NET_ADMIN", name, err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("create TUN device %s: %w; load the tun module, or use a kernel with WireGuard", name, err)
	}
	return fmt.Errorf("create TUN device %s: %w", name, err)
}

// deviceLog hands wireguard-go's lines to slog. Its "verbose" is chatty and
// belongs to debug; it never logs keys.
func deviceLog(log *slog.Logger) *device.Logger {
	out := &device.Logger{Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) {
		log.Warn(fmt.Sprintf(format, args...))
	}}
	if log.Enabled(context.Background(), slog.LevelDebug) {
		out.Verbosef = func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...)) }
	}
	return out
}
