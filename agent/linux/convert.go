package linux

import (
	"math/bits"
	"unsafe"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// This file is the one place that knows byte order. Rows of package agent have
// ports as numbers; rows of package bpf are what programs see: addresses and
// ports in network byte order, everything else as the machine has it. Each pair
// of functions is inverse, and padding is zero: the kernel compares keys bytewise.

// swap turns a port between host and network byte order.
func swap(port uint16) uint16 {
	one := uint16(1)
	if *(*byte)(unsafe.Pointer(&one)) == 0 { // big endian: the same
		return port
	}
	return bits.ReverseBytes16(port)
}

func toAddr(a agent.Addr) bpf.Addr   { return bpf.Addr{B: a} }
func fromAddr(a bpf.Addr) agent.Addr { return a.B }

func toServiceKey(k agent.ServiceKey) bpf.ServiceKey {
	return bpf.ServiceKey{Addr: toAddr(k.Addr), Port: swap(k.Port), Proto: k.Proto, Scope: uint8(k.Scope)}
}

func fromServiceKey(k bpf.ServiceKey) agent.ServiceKey {
	return agent.ServiceKey{Addr: fromAddr(k.Addr), Port: swap(k.Port), Proto: k.Proto, Scope: agent.Scope(k.Scope)}
}

func toService(r agent.ServiceRow) bpf.Service {
	out := bpf.Service{Id: r.ID, Flags: uint8(r.Flags), NumTiers: r.NumTiers, Maglev: r.Maglev, Affinity: r.Affinity}
	for i, t := range r.Tiers {
		out.Tiers[i] = bpf.Tier{First: t.First, Groups: t.Groups, Share: t.Share}
	}
	for i, g := range r.Groups {
		out.Groups[i] = bpf.Group{Cluster: g.Cluster, Weight: g.Weight, Count: g.Count}
	}
	return out
}

func fromService(r bpf.Service) agent.ServiceRow {
	out := agent.ServiceRow{ID: r.Id, Flags: agent.ServiceFlags(r.Flags), NumTiers: r.NumTiers, Maglev: r.Maglev, Affinity: r.Affinity}
	for i, t := range r.Tiers {
		out.Tiers[i] = agent.Tier{First: t.First, Groups: t.Groups, Share: t.Share}
	}
	for i, g := range r.Groups {
		out.Groups[i] = agent.Group{Cluster: g.Cluster, Weight: g.Weight, Count: g.Count}
	}
	return out
}

func toSlotKey(k agent.SlotKey) bpf.SlotKey {
	return bpf.SlotKey{Service: k.Service, Slot: k.Slot, Cluster: k.Cluster}
}

func fromSlotKey(k bpf.SlotKey) agent.SlotKey {
	return agent.SlotKey{Service: k.Service, Slot: k.Slot, Cluster: k.Cluster}
}

func toSlot(r agent.SlotRow) bpf.Slot {
	return bpf.Slot{Addr: toAddr(r.Addr), Port: swap(r.Port), Cluster: r.Cluster, Node: r.Node}
}

func fromSlot(r bpf.Slot) agent.SlotRow {
	return agent.SlotRow{Addr: fromAddr(r.Addr), Port: swap(r.Port), Cluster: r.Cluster, Node: r.Node}
}

func toNodeKey(k agent.NodeKey) bpf.NodeKey {
	return bpf.NodeKey{Cluster: k.Cluster, Node: k.Node}
}

func fromNodeKey(k bpf.NodeKey) agent.NodeKey {
	return agent.NodeKey{Cluster: k.Cluster, Node: k.Node}
}

func toClusterKey(k agent.ClusterKey) uint16   { return uint16(k) }
func fromClusterKey(k uint16) agent.ClusterKey { return agent.ClusterKey(k) }

func toHealth(r agent.HealthRow) bpf.Health   { return bpf.Health{Since: r.Since} }
func fromHealth(r bpf.Health) agent.HealthRow { return agent.HealthRow{Since: r.Since} }

func toIPCache(r agent.IPCacheRow) bpf.IPCache {
	return bpf.IPCache{Identity: r.Identity, Node: r.Node, Flags: uint16(r.Flags)}
}

func fromIPCache(r bpf.IPCache) agent.IPCacheRow {
	return agent.IPCacheRow{Identity: r.Identity, Node: r.Node, Flags: agent.IPFlags(r.Flags)}
}

func toPrefix(k agent.Prefix) bpf.Prefix {
	return bpf.Prefix{Bits: uint32(k.Bits), Addr: toAddr(k.Addr)}
}

func fromPrefix(k bpf.Prefix) agent.Prefix {
	return agent.Prefix{Bits: uint8(k.Bits), Addr: fromAddr(k.Addr)}
}

func toEndpoint(r agent.EndpointRow) bpf.Endpoint {
	out := bpf.Endpoint{Subject: r.Subject, Ifindex: r.IfIndex, Identity: r.Identity, PodMac: r.PodMAC, HostMac: r.HostMAC}
	if r.Closed {
		out.Flags |= bpf.EndpointClosed
	}
	return out
}

func fromEndpoint(r bpf.Endpoint) agent.EndpointRow {
	return agent.EndpointRow{
		IfIndex: r.Ifindex, Identity: r.Identity, PodMAC: r.PodMac, HostMAC: r.HostMac,
		Subject: r.Subject, Closed: r.Flags&bpf.EndpointClosed != 0,
	}
}
