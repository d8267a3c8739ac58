package agent

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Names of the tables, in the order in which references enter.
const (
	TableConfig        = "config"
	TablePeers         = "peers"
	TableRoutes        = "routes"
	TablePolicy        = "policy"
	TableIPPrefixes    = "ipprefixes"
	TableIPs           = "ips"
	TableClassPrefixes = "class_prefixes"
	TableClasses       = "classes"
	TableSubjects      = "subjects"
	TableEndpoints     = "endpoints"
	TableSourceRanges  = "source_ranges"
	TableMaglev        = "maglev"
	TableSlots         = "slots"
	TableServices      = "services"
	TableNodeHealth    = "node_health"
	TableClusterHealth = "cluster_health"
)

// TableNames lists all tables in the order in which references enter.
func TableNames() []string {
	return []string{
		TableConfig, TablePeers, TableRoutes, TablePolicy, TableIPPrefixes, TableIPs, TableClassPrefixes, TableClasses,
		TableSubjects, TableEndpoints, TableSourceRanges, TableSlots, TableMaglev, TableServices, TableNodeHealth, TableClusterHealth,
	}
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
	ConfigText        = Text[ConfigKey, ConfigRow]{formatConfig, parseConfig, func(a, b ConfigKey) int { return 0 }}
	PeerText          = Text[PeerKey, PeerRow]{formatPeer, parsePeer, func(a, b PeerKey) int { return bytes.Compare(a[:], b[:]) }}
	RouteText         = Text[RouteKey, RouteRow]{formatRoute, parseRoute, compareRoutes}
	PolicyText        = Text[PolicyKey, PolicyRow]{formatPolicy, parsePolicy, comparePolicy}
	IPPrefixText      = Text[Prefix, IPCacheRow]{formatIPPrefix, parseIPPrefix, comparePrefixes}
	IPText            = Text[Addr, IPCacheRow]{formatIP, parseIP, compareAddrs}
	ClassPrefixText   = Text[Prefix, ClassRow]{formatClassPrefix, parseClassPrefix, comparePrefixes}
	ClassText         = Text[Addr, ClassRow]{formatClass, parseClass, compareAddrs}
	SubjectText       = Text[SubjectKey, SubjectRow]{formatSubject, parseSubject, func(a, b SubjectKey) int { return cmp.Compare(a, b) }}
	EndpointText      = Text[Addr, EndpointRow]{formatEndpoint, parseEndpoint, compareAddrs}
	RangeText         = Text[RangeKey, RangeRow]{formatRange, parseRange, compareRanges}
	MaglevText        = Text[MaglevKey, MaglevRow]{formatMaglev, parseMaglev, compareMaglev}
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
	return cmp.Or(compareAddrs(a.Addr, b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Scope, b.Scope))
}

func compareNodes(a, b NodeKey) int {
	return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Node, b.Node))
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
