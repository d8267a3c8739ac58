package linux

import (
	"cmp"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

func split(n uint64) [2]uint32 { return [2]uint32{uint32(n), uint32(n >> 32)} }
func join(w [2]uint32) uint64  { return uint64(w[0]) | uint64(w[1])<<32 }

func toPolicyKey(k agent.PolicyKey) bpf.PolicyKey {
	out := bpf.PolicyKey{Bits: bpf.PolicyBitsAny, Subject: split(uint64(k.Subject)), Peer: split(uint64(k.Peer)), Dir: uint8(k.Dir)}
	if k.Proto != 0 {
		out.Bits, out.Proto, out.Port = bpf.PolicyBitsProto+uint32(k.Bits), k.Proto, swap(k.Port)
	}
	return out
}

// narrowFirst orders policy rows so that a wide one never speaks for a narrow one
// that is not there yet, or not any more.
func narrowFirst(a, b agent.PolicyKey) int {
	return cmp.Compare(toPolicyKey(b).Bits, toPolicyKey(a).Bits)
}

func fromPolicyKey(k bpf.PolicyKey) agent.PolicyKey {
	out := agent.PolicyKey{Subject: agent.SubjectKey(join(k.Subject)), Peer: agent.PolicyPeer(join(k.Peer)), Dir: agent.Direction(k.Dir)}
	if k.Bits >= bpf.PolicyBitsProto {
		out.Proto, out.Bits, out.Port = k.Proto, uint8(k.Bits-bpf.PolicyBitsProto), swap(k.Port)
	}
	return out
}

func toStage(s agent.PolicyStage) bpf.Stage {
	return bpf.Stage{Rule: s.Rule, Rank: s.Rank, Verdict: uint8(s.Verdict)}
}

func fromStage(s bpf.Stage) agent.PolicyStage {
	return agent.PolicyStage{Rule: s.Rule, Rank: s.Rank, Verdict: agent.Verdict(s.Verdict)}
}

func toPolicy(r agent.PolicyRow) bpf.Policy {
	return bpf.Policy{Admin: toStage(r.Admin), Base: toStage(r.Base), Allow: r.Allow}
}

func fromPolicy(r bpf.Policy) agent.PolicyRow {
	return agent.PolicyRow{Admin: fromStage(r.Admin), Base: fromStage(r.Base), Allow: r.Allow}
}

func toSubjectKey(k agent.SubjectKey) uint64   { return uint64(k) }
func fromSubjectKey(k uint64) agent.SubjectKey { return agent.SubjectKey(k) }

func toSubject(r agent.SubjectRow) bpf.Subject { return bpf.Subject{Flags: uint32(r.Flags)} }
func fromSubject(r bpf.Subject) agent.SubjectRow {
	return agent.SubjectRow{Flags: agent.SubjectFlags(r.Flags)}
}

func toClass(r agent.ClassRow) bpf.Class   { return bpf.Class{Id: uint64(r.ID)} }
func fromClass(r bpf.Class) agent.ClassRow { return agent.ClassRow{ID: agent.PolicyPeer(r.Id)} }

func toRangeKey(k agent.RangeKey) bpf.RangeKey {
	return bpf.RangeKey{Bits: 64 + uint32(k.Prefix.Bits), Service: split(k.Service), Addr: toAddr(k.Prefix.Addr)}
}

func fromRangeKey(k bpf.RangeKey) agent.RangeKey {
	return agent.RangeKey{Service: join(k.Service), Prefix: agent.Prefix{Addr: fromAddr(k.Addr), Bits: uint8(k.Bits - 64)}}
}

func toRange(r agent.RangeRow) (out bpf.Range) {
	if r.Allow {
		out.Allow = 1
	}
	return out
}

func fromRange(r bpf.Range) agent.RangeRow { return agent.RangeRow{Allow: r.Allow != 0} }

func toMaglevKey(k agent.MaglevKey) bpf.MaglevKey {
	return bpf.MaglevKey{Service: k.Service, Chunk: k.Chunk}
}

func fromMaglevKey(k bpf.MaglevKey) agent.MaglevKey {
	return agent.MaglevKey{Service: k.Service, Chunk: k.Chunk}
}

func toMaglev(r agent.MaglevRow) bpf.Maglev   { return bpf.Maglev{Entry: r.Entry} }
func fromMaglev(r bpf.Maglev) agent.MaglevRow { return agent.MaglevRow{Entry: r.Entry} }

func toConfig(r agent.ConfigRow) bpf.Config {
	return bpf.Config{
		Node4: toAddr(r.Node4), Node6: toAddr(r.Node6), Tunnel4: toAddr(r.Tunnel4), Tunnel6: toAddr(r.Tunnel6),
		Flags: uint32(r.Flags), Cluster: r.Cluster, Node: r.Node, PortMin: r.PortMin, PortMax: r.PortMax, TunnelMtu: r.TunnelMTU,
	}
}

func fromConfig(r bpf.Config) agent.ConfigRow {
	return agent.ConfigRow{
		Node4: fromAddr(r.Node4), Node6: fromAddr(r.Node6), Tunnel4: fromAddr(r.Tunnel4), Tunnel6: fromAddr(r.Tunnel6),
		Flags: agent.ConfigFlags(r.Flags), Cluster: r.Cluster, Node: r.Node, PortMin: r.PortMin, PortMax: r.PortMax, TunnelMTU: r.TunnelMtu,
	}
}
