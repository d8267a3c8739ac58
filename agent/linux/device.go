package linux

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TunnelOverhead is what WireGuard over IPv6 costs: 40 IPv6, 8 UDP, 32 WireGuard.
const TunnelOverhead = 80

// minMTU is IPv6's: below it the kernel takes IPv6 off the device.
const minMTU = 1280

// Device is this node's WireGuard device: the kernel's where the kernel has
// WireGuard, else one that a `tombolo-agent tunnel` process holds.
type Device struct {
	name string
	port int
	key  wgtypes.Key
	nl   *netlink.Handle
	wg   *wgctrl.Client
	log  *slog.Logger
}

// DeviceState is what Ensure found.
type DeviceState struct {
	Present bool
	Kernel  bool // the kernel's own WireGuard; else a process of its own
	IfIndex int
	MTU     int
	Detail  string // one sentence for the log and status
}

// OpenDevice reads or makes the private key (state-dir/wireguard.key, 0600) and
// does not need the device to exist. It must be called in the node's network
// namespace; what it opens stays there.
func OpenDevice(stateDir, name string, port int, log *slog.Logger) (*Device, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	key, err := loadKey(filepath.Join(stateDir, "wireguard.key"))
	if err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	wg, err := wgctrl.New()
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("open WireGuard control: %w", err)
	}
	return &Device{name: name, port: port, key: key, nl: nl, wg: wg, log: log}, nil
}

// Close frees the handles; the device stays.
func (d *Device) Close() {
	d.wg.Close()
	d.nl.Close()
}

// Name of the device.
func (d *Device) Name() string { return d.name }

// PublicKey is what the node registers.
func (d *Device) PublicKey() [32]byte { return d.key.PublicKey() }

// Ensure brings the device to our key, port and MTU and sets it up; what is so
// already is not touched, so that a restart of the agent interrupts nothing. An
// absent device is made if the kernel can, else reported as not present with
// ErrNoTunnel in the error.
//
// guard (nil = none) puts the program on the device that judges what comes out
// of the tunnel. It is called before the device is set up, and if it fails the
// device goes, or stays, down: without it a peer would reach all of this node.
func (d *Device) Ensure(mtu int, guard func(ifindex int) error) (DeviceState, error) {
	link, err := d.nl.LinkByName(d.name)
	if isLinkNotFound(err) {
		link, err = d.create()
	}
	if err != nil {
		return DeviceState{Detail: "device " + d.name + " is absent"}, err
	}
	st := DeviceState{Present: true, Kernel: link.Type() == "wireguard", IfIndex: link.Attrs().Index, MTU: mtu}
	if st.Kernel {
		st.Detail = "WireGuard of the kernel, device " + d.name
	} else {
		st.Detail = "user-space WireGuard, device " + d.name + " held by a tunnel process (this kernel has no WireGuard)"
	}
	if err := d.configure(); err != nil {
		st.Present = false
		return st, err
	}
	if mtu > 0 && link.Attrs().MTU != mtu {
		if err := d.nl.LinkSetMTU(link, mtu); err != nil {
			return st, fmt.Errorf("set MTU of %s to %d: %w", d.name, mtu, err)
		}
	}
	if guard != nil {
		if err := guard(st.IfIndex); err != nil {
			st.Present = false
			return st, errors.Join(err, d.nl.LinkSetDown(link))
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		// No link-local address: nothing on the tunnel speaks neighbour discovery.
		// A kernel that cannot do without one is no worse off.
		_ = d.nl.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
		if err := d.nl.LinkSetUp(link); err != nil {
			return st, fmt.Errorf("set %s up: %w", d.name, err)
		}
	}
	return st, nil
}

// create makes the kernel's device. A TUN left for a moment by a dying process
// is not ours to make.
func (d *Device) create() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = d.name
	err := d.nl.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("%w: this kernel has no WireGuard (%v) and no tunnel process holds %s: start `tombolo-agent tunnel --device %s` in this network namespace", ErrNoTunnel, err, d.name, d.name)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("create WireGuard device %s: %w", d.name, err)
	}
	return d.nl.LinkByName(d.name)
}

func (d *Device) configure() error {
	dev, err := d.wg.Device(d.name)
	if err != nil {
		return absent(d.name, err)
	}
	var cfg wgtypes.Config
	if dev.PrivateKey != d.key {
		cfg.PrivateKey = &d.key
	}
	if dev.ListenPort != d.port {
		cfg.ListenPort = &d.port
	}
	if cfg.PrivateKey == nil && cfg.ListenPort == nil {
		return nil
	}
	if err := d.wg.ConfigureDevice(d.name, cfg); err != nil {
		if errors.Is(err, unix.EADDRINUSE) || strings.Contains(err.Error(), "errno=-98") {
			return fmt.Errorf("UDP port %d of %s is taken: choose another --wireguard-port or stop who holds it: %w", d.port, d.name, err)
		}
		return absent(d.name, err)
	}
	return nil
}

// Clear takes our peers and key off the device, and deletes it if it is the
// kernel's (a user-space one belongs to its process).
func (d *Device) Clear() error {
	link, err := d.nl.LinkByName(d.name)
	if isLinkNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if link.Type() == "wireguard" {
		return d.nl.LinkDel(link)
	}
	err = d.wg.ConfigureDevice(d.name, wgtypes.Config{ReplacePeers: true, PrivateKey: &wgtypes.Key{}})
	if err != nil && isAbsent(err) {
		return nil
	}
	return err
}

// SetTunnelAddresses puts the tunnel addresses on lo and takes old ones of ours
// off. They live on lo because the tunnel device may come and go.
func (d *Device) SetTunnelAddresses(want, old []netip.Addr) error {
	lo, err := d.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := d.nl.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
	}
	for _, a := range want {
		addr := &netlink.Addr{IPNet: hostNet(a)}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := d.nl.AddrReplace(lo, addr); err != nil {
			return fmt.Errorf("put tunnel address %s on lo: %w", a, err)
		}
	}
	for _, a := range old {
		if slices.Contains(want, a) {
			continue
		}
		if err := d.nl.AddrDel(lo, &netlink.Addr{IPNet: hostNet(a)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take old tunnel address %s off lo: %w", a, err)
		}
	}
	return nil
}

// PodMTU is what fits through the tunnel.
func PodMTU(underlay int) int { return max(underlay-TunnelOverhead, minMTU) }

// hostNet is a with its full length: /32 or /128.
func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func isLinkNotFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf)
}

// loadKey reads the private key or makes it once.
func loadKey(path string) (wgtypes.Key, error) {
	data, err := os.ReadFile(path)
	if err == nil {
		key, err := wgtypes.ParseKey(strings.TrimSpace(string(data)))
		if err != nil {
			return key, fmt.Errorf("WireGuard key %s: %w; delete the file to have a new key made (the node then registers it)", path, err)
		}
		return key, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return wgtypes.Key{}, fmt.Errorf("read WireGuard key: %w", err)
	}
	var raw [32]byte
	rand.Read(raw[:])
	raw[0] &= 248
	raw[31] = raw[31]&127 | 64
	key := wgtypes.Key(raw)
	if err := writeFile(path, []byte(key.String()+"\n")); err != nil {
		return key, fmt.Errorf("keep WireGuard key: %w", err)
	}
	return key, nil
}
