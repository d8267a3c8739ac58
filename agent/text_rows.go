package agent

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func hostPort(a Addr, port uint16) string { return netip.AddrPortFrom(a.IP(), port).String() }

func formatIdentity(id uint32) string {
	i := clustermesh.Identity(id)
	return fmt.Sprintf("%d:%d", i.Cluster(), i.Number())
}

func (f *fields) identity() uint32 {
	s, _ := f.take("identity")
	return f.parseIdentity(s)
}

func formatPeer(k PeerKey, v PeerRow) string {
	s := base64.StdEncoding.EncodeToString(k[:])
	if v.Endpoint.IsValid() {
		s += " endpoint=" + v.Endpoint.String()
	}
	if v.Allowed != "" {
		s += " allowed=" + v.Allowed
	}
	return s
}

func parsePeer(line string) (k PeerKey, v PeerRow, err error) {
	f := splitLine(line, 1)
	raw, err := base64.StdEncoding.DecodeString(f.words[0])
	if err == nil && len(raw) != len(k) {
		err = errors.New("not 32 bytes")
	}
	f.fail("key", f.words[0], err)
	copy(k[:], raw)
	if s, ok := f.take("endpoint"); ok {
		v.Endpoint, err = netip.ParseAddrPort(s)
		f.fail("endpoint", s, err)
	}
	v.Allowed, _ = f.take("allowed")
	return k, v, f.done()
}

var routeKinds = map[RouteKind]string{RouteBlackhole: "blackhole", RouteTunnel: "tunnel", RouteDirect: "direct", RoutePod: "pod", RouteUnreachable: "unreachable"}

func (k RouteKind) String() string {
	if s, ok := routeKinds[k]; ok {
		return s
	}
	return "kind" + strconv.Itoa(int(k))
}

func formatRoute(k RouteKey, v RouteRow) string {
	s := k.Prefix.String() + " " + k.Kind.String()
	if v.Via != (Addr{}) {
		s += " via=" + v.Via.String()
	}
	if v.Source != (Addr{}) {
		s += " src=" + v.Source.String()
	}
	if v.IfIndex != 0 {
		s += fmt.Sprintf(" if=%d", v.IfIndex)
	}
	if v.MTU != 0 {
		s += fmt.Sprintf(" mtu=%d", v.MTU)
	}
	return s
}

func parseRoute(line string) (k RouteKey, v RouteRow, err error) {
	f := splitLine(line, 2)
	k.Prefix = f.parsePrefix(f.words[0])
	for kind, name := range routeKinds {
		if name == f.words[1] {
			k.Kind = kind
		}
	}
	if k.Kind == 0 {
		f.fail("kind", f.words[1], errors.New("no such kind of route"))
	}
	v.Via, v.Source = f.addr("via"), f.addr("src")
	v.IfIndex, v.MTU = uint32(f.number("if", 32)), uint16(f.number("mtu", 16))
	return k, v, f.done()
}

func formatIPRow(v IPCacheRow) string {
	s := fmt.Sprintf(" identity=%s node=%d", formatIdentity(v.Identity), v.Node)
	if v.Flags != 0 {
		s += " flags=" + v.Flags.String()
	}
	return s
}

func (f *fields) ipRow() IPCacheRow {
	return IPCacheRow{Identity: f.identity(), Node: uint16(f.number("node", 16)), Flags: IPFlags(f.flagNames("flags", 16, ipFlags))}
}

func formatIPPrefix(k Prefix, v IPCacheRow) string { return k.String() + formatIPRow(v) }

func parseIPPrefix(line string) (k Prefix, v IPCacheRow, err error) {
	f := splitLine(line, 1)
	k, v = f.parsePrefix(f.words[0]), f.ipRow()
	return k, v, f.done()
}

func formatIP(k Addr, v IPCacheRow) string { return k.String() + formatIPRow(v) }

func parseIP(line string) (k Addr, v IPCacheRow, err error) {
	f := splitLine(line, 1)
	k, v = f.parseAddr(f.words[0]), f.ipRow()
	return k, v, f.done()
}

func formatEndpoint(k Addr, v EndpointRow) string {
	s := fmt.Sprintf("%s if=%d pod=%s host=%s identity=%s", k, v.IfIndex,
		net.HardwareAddr(v.PodMAC[:]), net.HardwareAddr(v.HostMAC[:]), formatIdentity(v.Identity))
	if v.Subject != 0 {
		s += fmt.Sprintf(" policy=%016x", v.Subject)
	}
	if v.Closed {
		s += " closed=1"
	}
	return s
}

func parseEndpoint(line string) (k Addr, v EndpointRow, err error) {
	f := splitLine(line, 1)
	k = f.parseAddr(f.words[0])
	v = EndpointRow{IfIndex: uint32(f.number("if", 32)), PodMAC: f.mac("pod"), HostMAC: f.mac("host"), Identity: f.identity()}
	if s, ok := f.take("policy"); ok {
		v.Subject, err = parseServiceID(s)
		f.fail("policy", s, err)
	}
	v.Closed = f.number("closed", 1) != 0
	return k, v, f.done()
}

func formatSlot(k SlotKey, v SlotRow) string {
	return fmt.Sprintf("%016x/%d/%d %s cluster=%d node=%d", k.Service, k.Cluster, k.Slot, hostPort(v.Addr, v.Port), v.Cluster, v.Node)
}

func parseSlot(line string) (k SlotKey, v SlotRow, err error) {
	f := splitLine(line, 2)
	parts := strings.Split(f.words[0], "/")
	if len(parts) != 3 {
		return k, v, fmt.Errorf("slot %q: want service/cluster/slot", f.words[0])
	}
	k.Service, err = parseServiceID(parts[0])
	f.fail("service", parts[0], err)
	cluster, err := strconv.ParseUint(parts[1], 10, 16)
	f.fail("cluster", parts[1], err)
	slot, err := strconv.ParseUint(parts[2], 10, 32)
	f.fail("slot", parts[2], err)
	k.Cluster, k.Slot = uint16(cluster), uint32(slot)
	v.Addr, v.Port = f.addrPort(f.words[1])
	v.Cluster, v.Node = uint16(f.number("cluster", 16)), uint16(f.number("node", 16))
	return k, v, f.done()
}

func parseServiceID(s string) (uint64, error) {
	raw, err := hex.DecodeString(s)
	if err == nil && len(raw) != 8 {
		err = errors.New("want 16 hex digits")
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(s, 16, 64)
}

var protocols = map[uint8]string{uint8(clustermesh.TCP): "tcp", uint8(clustermesh.UDP): "udp", uint8(clustermesh.SCTP): "sctp"}

func protocolName(p uint8) string {
	if s, ok := protocols[p]; ok {
		return s
	}
	return strconv.Itoa(int(p))
}

func parseProtocol(s string) (uint8, error) {
	for n, name := range protocols {
		if name == s {
			return n, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return uint8(n), err
}

func (k ServiceKey) String() string {
	s := hostPort(k.Addr, k.Port) + "/" + protocolName(k.Proto)
	if k.Scope == ScopeOutside {
		s += "/outside"
	}
	return s
}

// formatService writes each tier as share[cluster*weight#slots,…]. Groups that
// belong to no tier are not written: a row never has any.
func formatService(k ServiceKey, v ServiceRow) string {
	s := fmt.Sprintf("%s id=%016x flags=%d", k, v.ID, v.Flags)
	if v.Maglev != 0 {
		s += fmt.Sprintf(" maglev=%d", v.Maglev)
	}
	if v.Affinity != 0 {
		s += fmt.Sprintf(" affinity=%d", v.Affinity)
	}
	for i := range min(int(v.NumTiers), MaxTiers) {
		tier := v.Tiers[i]
		var groups []string
		for j := int(tier.First); j < min(int(tier.First)+int(tier.Groups), MaxGroups); j++ {
			g := v.Groups[j]
			groups = append(groups, fmt.Sprintf("%d*%d#%d", g.Cluster, g.Weight, g.Count))
		}
		s += fmt.Sprintf(" tier%d=%d[%s]", i, tier.Share, strings.Join(groups, ","))
	}
	return s
}

func parseService(line string) (k ServiceKey, v ServiceRow, err error) {
	f := splitLine(line, 1)
	at, proto, _ := strings.Cut(f.words[0], "/")
	proto, scope, scoped := strings.Cut(proto, "/")
	if scoped {
		k.Scope = ScopeOutside
		if scope != "outside" {
			f.fail("scope", scope, errors.New("want outside or nothing"))
		}
	}
	k.Addr, k.Port = f.addrPort(at)
	k.Proto, err = parseProtocol(proto)
	f.fail("protocol", proto, err)
	id, _ := f.take("id")
	v.ID, err = parseServiceID(id)
	f.fail("id", id, err)
	v.Flags = ServiceFlags(f.number("flags", 8))
	v.Maglev, v.Affinity = uint16(f.number("maglev", 16)), uint32(f.number("affinity", 32))
	next := 0
	for i := range MaxTiers {
		s, ok := f.take("tier" + strconv.Itoa(i))
		if !ok {
			break
		}
		share, rest, ok := strings.Cut(strings.TrimSuffix(s, "]"), "[")
		n, err := strconv.ParseUint(share, 10, 16)
		if err == nil && !ok {
			err = errors.New("want share[groups]")
		}
		f.fail("tier", s, err)
		v.Tiers[i] = Tier{First: uint8(next), Share: uint16(n)}
		v.NumTiers++
		for _, word := range strings.FieldsFunc(rest, func(r rune) bool { return r == ',' }) {
			if next == MaxGroups {
				return k, v, errors.New("too many groups")
			}
			g, err := parseGroup(word)
			f.fail("group", word, err)
			v.Groups[next] = g
			v.Tiers[i].Groups++
			next++
		}
	}
	return k, v, f.done()
}

func parseGroup(s string) (Group, error) {
	cluster, rest, ok1 := strings.Cut(s, "*")
	weight, count, ok2 := strings.Cut(rest, "#")
	if !ok1 || !ok2 {
		return Group{}, errors.New("want cluster*weight#slots")
	}
	c, err1 := strconv.ParseUint(cluster, 10, 16)
	w, err2 := strconv.ParseUint(weight, 10, 16)
	n, err3 := strconv.ParseUint(count, 10, 32)
	return Group{Cluster: uint16(c), Weight: uint16(w), Count: uint32(n)}, errors.Join(err1, err2, err3)
}

func formatNodeHealth(k NodeKey, v HealthRow) string {
	return fmt.Sprintf("%d/%d since=%d", k.Cluster, k.Node, v.Since)
}

func parseNodeHealth(line string) (k NodeKey, v HealthRow, err error) {
	f := splitLine(line, 1)
	c, n, _ := strings.Cut(f.words[0], "/")
	cluster, err := strconv.ParseUint(c, 10, 16)
	f.fail("cluster", c, err)
	node, err := strconv.ParseUint(n, 10, 16)
	f.fail("node", n, err)
	k.Cluster, k.Node = uint16(cluster), uint16(node)
	v.Since = f.number("since", 64)
	return k, v, f.done()
}

func formatClusterHealth(k ClusterKey, v HealthRow) string {
	return fmt.Sprintf("%d since=%d", k, v.Since)
}

func parseClusterHealth(line string) (k ClusterKey, v HealthRow, err error) {
	f := splitLine(line, 1)
	n, err := strconv.ParseUint(f.words[0], 10, 16)
	f.fail("cluster", f.words[0], err)
	v.Since = f.number("since", 64)
	return ClusterKey(n), v, f.done()
}
