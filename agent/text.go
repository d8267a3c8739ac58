package agent

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Names of the tables, in the order in which references enter.
const (
	TablePeers         = "peers"
	TableRoutes        = "routes"
	TableIPPrefixes    = "ipprefixes"
	TableIPs           = "ips"
	TableEndpoints     = "endpoints"
	TableSlots         = "slots"
	TableServices      = "services"
	TableNodeHealth    = "node_health"
	TableClusterHealth = "cluster_health"
)

// TableNames lists all tables in the order in which references enter.
func TableNames() []string {
	return []string{TablePeers, TableRoutes, TableIPPrefixes, TableIPs, TableEndpoints, TableSlots, TableServices, TableNodeHealth, TableClusterHealth}
}

// Text is how a table's rows are written as lines and read back: one row a
// line, the key first, in key order. Format and Parse are inverse. The same
// text is what tests compare, what `maps` prints and what a bug report holds.
type Text[K comparable, V any] struct {
	Format  func(K, V) string
	Parse   func(string) (K, V, error)
	Compare func(a, b K) int
}

// Print writes rows as text, sorted by key.
func (t Text[K, V]) Print(rows map[K]V) string {
	keys := make([]K, 0, len(rows))
	for k := range rows {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, t.Compare)
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(t.Format(k, rows[k]))
		b.WriteByte('\n')
	}
	return b.String()
}

// Read is the inverse of Print. Empty lines and lines beginning with # are skipped.
func (t Text[K, V]) Read(text string) (map[K]V, error) {
	rows := map[K]V{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		k, v, err := t.Parse(line)
		if err != nil {
			return nil, fmt.Errorf("line %d %q: %w", i+1, line, err)
		}
		if _, twice := rows[k]; twice {
			return nil, fmt.Errorf("line %d %q: the key was there before", i+1, line)
		}
		rows[k] = v
	}
	return rows, nil
}

// The texts of all tables.
var (
	PeerText          = Text[PeerKey, PeerRow]{formatPeer, parsePeer, func(a, b PeerKey) int { return bytes.Compare(a[:], b[:]) }}
	RouteText         = Text[RouteKey, RouteRow]{formatRoute, parseRoute, compareRoutes}
	IPPrefixText      = Text[Prefix, IPCacheRow]{formatIPPrefix, parseIPPrefix, comparePrefixes}
	IPText            = Text[Addr, IPCacheRow]{formatIP, parseIP, compareAddrs}
	EndpointText      = Text[Addr, EndpointRow]{formatEndpoint, parseEndpoint, compareAddrs}
	SlotText          = Text[SlotKey, SlotRow]{formatSlot, parseSlot, compareSlots}
	ServiceText       = Text[ServiceKey, ServiceRow]{formatService, parseService, compareServices}
	NodeHealthText    = Text[NodeKey, HealthRow]{formatNodeHealth, parseNodeHealth, compareNodes}
	ClusterHealthText = Text[ClusterKey, HealthRow]{formatClusterHealth, parseClusterHealth, func(a, b ClusterKey) int { return cmp.Compare(a, b) }}
)

func compareAddrs(a, b Addr) int { return bytes.Compare(a[:], b[:]) }

func comparePrefixes(a, b Prefix) int {
	return cmp.Or(compareAddrs(a.Addr, b.Addr), cmp.Compare(a.Bits, b.Bits))
}

func compareRoutes(a, b RouteKey) int {
	return cmp.Or(comparePrefixes(a.Prefix, b.Prefix), cmp.Compare(a.Kind, b.Kind))
}

func compareSlots(a, b SlotKey) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Slot, b.Slot))
}

func compareServices(a, b ServiceKey) int {
	return cmp.Or(compareAddrs(a.Addr, b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
}

func compareNodes(a, b NodeKey) int {
	return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Node, b.Node))
}

// fields takes a line apart: its first n words, then name=value pairs.
type fields struct {
	words []string
	pairs map[string]string
	err   error
}

func splitLine(line string, n int) *fields {
	f := &fields{pairs: map[string]string{}}
	for i, word := range strings.Fields(line) {
		if i < n {
			f.words = append(f.words, word)
			continue
		}
		name, value, ok := strings.Cut(word, "=")
		if _, twice := f.pairs[name]; !ok || twice {
			f.err = fmt.Errorf("%q: want name=value, each name once", word)
		}
		f.pairs[name] = value
	}
	if len(f.words) < n {
		f.err = errors.New("too few words")
		f.words = append(f.words, make([]string, n-len(f.words))...)
	}
	return f
}

func (f *fields) fail(what, value string, err error) {
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("%s %q: %w", what, value, err)
	}
}

// take removes a pair, so that what is left over at the end is a mistake.
func (f *fields) take(name string) (string, bool) {
	v, ok := f.pairs[name]
	delete(f.pairs, name)
	return v, ok
}

func (f *fields) done() error {
	if f.err == nil {
		for name := range f.pairs {
			return fmt.Errorf("unknown field %q", name)
		}
	}
	return f.err
}

func (f *fields) number(name string, bits int) uint64 {
	s, ok := f.take(name)
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, bits)
	f.fail(name, s, err)
	return n
}

func (f *fields) parseAddr(s string) Addr {
	a, err := netip.ParseAddr(s)
	f.fail("address", s, err)
	if err != nil {
		return Addr{}
	}
	return MakeAddr(a)
}

func (f *fields) addr(name string) Addr {
	s, ok := f.take(name)
	if !ok {
		return Addr{}
	}
	return f.parseAddr(s)
}

func (f *fields) parsePrefix(s string) Prefix {
	p, err := netip.ParsePrefix(s)
	f.fail("prefix", s, err)
	if err != nil {
		return Prefix{}
	}
	return MakePrefix(p)
}

func (f *fields) addrPort(s string) (Addr, uint16) {
	ap, err := netip.ParseAddrPort(s)
	f.fail("address and port", s, err)
	if err != nil {
		return Addr{}, 0
	}
	return MakeAddr(ap.Addr()), ap.Port()
}

func (f *fields) mac(name string) (m [6]byte) {
	s, _ := f.take(name)
	hw, err := net.ParseMAC(s)
	f.fail(name, s, err)
	copy(m[:], hw)
	return m
}

// Netip is p as a netip.Prefix: one that lies in ::ffff:0:0/96 as IPv4.
func (p Prefix) Netip() netip.Prefix {
	ip := p.Addr.IP()
	if ip.Is4() {
		if p.Bits >= 96 {
			return netip.PrefixFrom(ip, int(p.Bits)-96)
		}
		ip = netip.AddrFrom16(p.Addr)
	}
	return netip.PrefixFrom(ip, int(p.Bits))
}

func (p Prefix) String() string { return p.Netip().String() }

func hostPort(a Addr, port uint16) string { return netip.AddrPortFrom(a.IP(), port).String() }

func formatIdentity(id uint32) string {
	i := clustermesh.Identity(id)
	return fmt.Sprintf("%d:%d", i.Cluster(), i.Number())
}

func (f *fields) identity() uint32 {
	s, _ := f.take("identity")
	c, n, _ := strings.Cut(s, ":")
	cluster, err := strconv.ParseUint(c, 10, 12)
	f.fail("identity", s, err)
	number, err := strconv.ParseUint(n, 10, clustermesh.IdentityBits)
	f.fail("identity", s, err)
	return uint32(clustermesh.MakeIdentity(clustermesh.ID(cluster), uint32(number)))
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

var routeKinds = map[RouteKind]string{RouteBlackhole: "blackhole", RouteTunnel: "tunnel", RouteDirect: "direct", RoutePod: "pod"}

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
	return fmt.Sprintf(" identity=%s node=%d", formatIdentity(v.Identity), v.Node)
}

func (f *fields) ipRow() IPCacheRow {
	return IPCacheRow{Identity: f.identity(), Node: uint16(f.number("node", 16))}
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
	return fmt.Sprintf("%s if=%d pod=%s host=%s identity=%s", k, v.IfIndex,
		net.HardwareAddr(v.PodMAC[:]), net.HardwareAddr(v.HostMAC[:]), formatIdentity(v.Identity))
}

func parseEndpoint(line string) (k Addr, v EndpointRow, err error) {
	f := splitLine(line, 1)
	k = f.parseAddr(f.words[0])
	v = EndpointRow{IfIndex: uint32(f.number("if", 32)), PodMAC: f.mac("pod"), HostMAC: f.mac("host"), Identity: f.identity()}
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

func (k ServiceKey) String() string { return hostPort(k.Addr, k.Port) + "/" + protocolName(k.Proto) }

// formatService writes each tier as share[cluster*weight#slots,…]. Groups that
// belong to no tier are not written: a row never has any.
func formatService(k ServiceKey, v ServiceRow) string {
	s := fmt.Sprintf("%s id=%016x flags=%d", k, v.ID, v.Flags)
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
	k.Addr, k.Port = f.addrPort(at)
	k.Proto, err = parseProtocol(proto)
	f.fail("protocol", proto, err)
	id, _ := f.take("id")
	v.ID, err = parseServiceID(id)
	f.fail("id", id, err)
	v.Flags = ServiceFlags(f.number("flags", 8))
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
