package linux

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
)

// RouteProtocol is the ownership mark of our routes: nobody else's routes are
// ever listed, replaced or deleted. `ip route show proto 84` shows them.
const RouteProtocol = 84

// Metrics tell the kinds of route apart, also for a process with no memory. They
// are unusual on purpose: a replace finds its target by prefix and metric. The
// blackhole is the worst of all, so that it takes over the instant the tunnel
// route is gone with its device.
const (
	metricPod         = 8410
	metricDirect      = 8420
	metricTunnel      = 8430
	metricUnreachable = 0xffffffe0
	metricBlackhole   = 0xfffffff0
)

// routes is the Table of our routes in the main table of one network namespace.
type routes struct {
	nl     *netlink.Handle
	device string // name of the tunnel device
	err    error
}

// Dump lists both families. A kernel dump that was interrupted by a change is
// repeated; what is left interrupted counts as an error.
func (t *routes) Dump() iter.Seq2[agent.RouteKey, agent.RouteRow] {
	return func(yield func(agent.RouteKey, agent.RouteRow) bool) {
		t.err = nil
		tunnel, _ := t.tunnelIndex()
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := t.list(family)
			if err != nil {
				t.err = fmt.Errorf("list routes: %w", err)
				return
			}
			for i := range list {
				key, row, ok := routeFromKernel(&list[i], tunnel)
				if ok && !yield(key, row) {
					return
				}
			}
		}
	}
}

func (t *routes) DumpErr() error { return t.err }

func (t *routes) list(family int) ([]netlink.Route, error) {
	for try := 0; ; try++ {
		list, err := t.nl.RouteListFiltered(family, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == 4 {
			return list, err
		}
	}
}

// Put writes what it can and reports the rest: one absent device must not hold
// up the blackholes and the routes of pods.
func (t *routes) Put(rows map[agent.RouteKey]agent.RouteRow) error {
	tunnel, tunnelErr := t.tunnelIndex()
	var waiting int
	var errs []error
	// Blackholes first: no prefix may have a tunnel route without its guard.
	for _, blackholes := range []bool{true, false} {
		for key, row := range rows {
			if leadsNowhere(key.Kind) != blackholes {
				continue
			}
			if key.Kind == agent.RouteTunnel && row.IfIndex == 0 && tunnelErr != nil {
				waiting++
				continue
			}
			if err := t.nl.RouteReplace(routeToKernel(key, row, tunnel)); err != nil && len(errs) < 8 {
				errs = append(errs, fmt.Errorf("put %s route to %s: %w", kindName(key.Kind), prefixFrom(key.Prefix), err))
			}
		}
	}
	if waiting > 0 {
		errs = append(errs, fmt.Errorf("%d routes wait for the tunnel: %w", waiting, tunnelErr))
	}
	return errors.Join(errs...)
}

// Delete takes blackholes last, for the reason Put writes them first.
func (t *routes) Delete(keys []agent.RouteKey) error {
	var errs []error
	for _, blackholes := range []bool{false, true} {
		for _, key := range keys {
			if leadsNowhere(key.Kind) != blackholes {
				continue
			}
			// Naming protocol and metric keeps foreign routes to the prefix safe;
			// nothing else is named, so that a route that was changed by hand goes too.
			r := &netlink.Route{Dst: ipNet(prefixFrom(key.Prefix)), Priority: metricOf(key.Kind), Protocol: RouteProtocol,
				Scope: netlink.SCOPE_NOWHERE, Table: unix.RT_TABLE_MAIN}
			switch key.Kind {
			case agent.RouteBlackhole:
				r.Type = unix.RTN_BLACKHOLE
			case agent.RouteUnreachable:
				r.Type = unix.RTN_UNREACHABLE
			}
			if err := t.nl.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) && len(errs) < 8 {
				errs = append(errs, fmt.Errorf("delete %s route to %s: %w", kindName(key.Kind), prefixFrom(key.Prefix), err))
			}
		}
	}
	return errors.Join(errs...)
}

func (t *routes) tunnelIndex() (int, error) {
	link, err := t.nl.LinkByName(t.device)
	if err != nil {
		return 0, absent(t.device, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return link.Attrs().Index, fmt.Errorf("%w: device %s is down", ErrNoTunnel, t.device)
	}
	return link.Attrs().Index, nil
}

// routeToKernel is the one place that says what each kind looks like.
func routeToKernel(key agent.RouteKey, row agent.RouteRow, tunnel int) *netlink.Route {
	prefix := prefixFrom(key.Prefix)
	r := &netlink.Route{Dst: ipNet(prefix), Priority: metricOf(key.Kind), Protocol: RouteProtocol,
		Table: unix.RT_TABLE_MAIN, MTU: int(row.MTU), LinkIndex: int(row.IfIndex)}
	if row.Source != (agent.Addr{}) {
		r.Src = netIP(row.Source.IP())
	}
	if row.Via != (agent.Addr{}) {
		r.Gw = netIP(row.Via.IP())
	}
	switch key.Kind {
	case agent.RouteBlackhole:
		r.Type, r.LinkIndex = unix.RTN_BLACKHOLE, 0
	case agent.RouteUnreachable:
		r.Type, r.LinkIndex = unix.RTN_UNREACHABLE, 0
	case agent.RouteTunnel:
		if r.LinkIndex == 0 {
			r.LinkIndex = tunnel
		}
	}
	if prefix.Addr().Is4() && r.Gw == nil && !leadsNowhere(key.Kind) {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// destination is where a route leads; false: it names none, as some default routes.
func destination(r *netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	if r.Family == netlink.FAMILY_V4 {
		addr = addr.Unmap()
	}
	bits, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(addr, bits), true
}

// routeFromKernel is its inverse. ok is false for what none of our kinds can be:
// a route with our protocol number and a metric that we never use.
func routeFromKernel(r *netlink.Route, tunnel int) (key agent.RouteKey, row agent.RouteRow, ok bool) {
	dst, ok := destination(r)
	if !ok {
		return key, row, false
	}
	key.Prefix = agent.MakePrefix(dst)
	switch uint32(r.Priority) {
	case metricPod:
		key.Kind = agent.RoutePod
	case metricDirect:
		key.Kind = agent.RouteDirect
	case metricTunnel:
		key.Kind = agent.RouteTunnel
	case metricBlackhole:
		key.Kind = agent.RouteBlackhole
	case metricUnreachable:
		key.Kind = agent.RouteUnreachable
	default:
		return key, row, false
	}
	row.MTU = uint16(r.MTU)
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		row.Source = agent.MakeAddr(src)
	}
	if gw, ok := netip.AddrFromSlice(r.Gw); ok {
		row.Via = agent.MakeAddr(gw)
	}
	row.IfIndex = uint32(r.LinkIndex)
	switch {
	case leadsNowhere(key.Kind): // IPv6 puts them on lo
		row.IfIndex = 0
	case key.Kind == agent.RouteDirect: // the kernel found the device by the next hop
		row.IfIndex = 0
	case key.Kind == agent.RouteTunnel && r.LinkIndex == tunnel:
		row.IfIndex = 0
	}
	return key, row, true
}

func metricOf(k agent.RouteKind) int {
	switch k {
	case agent.RoutePod:
		return metricPod
	case agent.RouteDirect:
		return metricDirect
	case agent.RouteTunnel:
		return metricTunnel
	case agent.RouteUnreachable:
		return metricUnreachable
	}
	return metricBlackhole
}

// leadsNowhere tells the routes that answer where no other one leads.
func leadsNowhere(k agent.RouteKind) bool {
	return k == agent.RouteBlackhole || k == agent.RouteUnreachable
}

func kindName(k agent.RouteKind) string {
	switch k {
	case agent.RoutePod:
		return "pod"
	case agent.RouteDirect:
		return "direct"
	case agent.RouteTunnel:
		return "tunnel"
	case agent.RouteBlackhole:
		return "blackhole"
	case agent.RouteUnreachable:
		return "unreachable"
	}
	return fmt.Sprintf("kind %d", k)
}

func prefixFrom(p agent.Prefix) netip.Prefix {
	a, bits := p.Addr.IP(), int(p.Bits)
	if a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits)
}

func netIP(a netip.Addr) net.IP { return a.AsSlice() }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
