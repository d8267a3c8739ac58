package policy

import (
	"net/netip"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Reason is what a decision rests on.
type Reason uint8

const (
	ReasonNone      Reason = iota // no policy selects the pod
	ReasonAdmin                   // a rule of the Admin tier
	ReasonAllowed                 // a NetworkPolicy rule
	ReasonIsolated                // a NetworkPolicy isolates the pod, and none allows
	ReasonBaseline                // a rule of the Baseline tier
	ReasonDefault                 // no rule had a say
	ReasonNotLoaded               // the subject has no row (yet)
)

func (r Reason) String() string {
	return [...]string{"no-policy", "admin", "allowed", "isolated", "baseline", "default", "not-loaded"}[r]
}

// Decision about one direction of a connection.
type Decision struct {
	Allow  bool
	Rule   uint32 // RuleID; 0 = no rule
	Reason Reason
}

// decide combines the rows of identity and class, as bpf/src/policy.h does.
func decide(flags SubjectFlags, d Direction, a, b Row) Decision {
	if s := first(a.Admin, b.Admin); s.Verdict == Accept || s.Verdict == Deny {
		return Decision{s.Verdict == Accept, s.Rule, ReasonAdmin}
	}
	if flags.isolated(d) {
		for _, rule := range []uint32{a.Allow, b.Allow} {
			if rule != 0 {
				return Decision{true, rule, ReasonAllowed}
			}
		}
		return Decision{false, 0, ReasonIsolated}
	}
	if s := first(a.Base, b.Base); s.Verdict == Accept || s.Verdict == Deny {
		return Decision{s.Verdict == Accept, s.Rule, ReasonBaseline}
	}
	return Decision{true, 0, ReasonDefault}
}

// first is the stage of lower rank; one without verdict has none.
func first(a, b Stage) Stage {
	if a.Rank == 0 || b.Rank != 0 && b.Rank < a.Rank {
		return b
	}
	return a
}

// Tables are rows in memory: a Sink, and what looks up in it exactly as the BPF
// program does. The twin of the kernel's maps.
type Tables struct {
	Rows     map[Key]Row
	Subjects map[Subject]SubjectRow
	Classes  map[netip.Prefix]Class
	Pods     map[string]Subject
}

// NewTables makes empty ones.
func NewTables() *Tables {
	return &Tables{map[Key]Row{}, map[Subject]SubjectRow{}, map[netip.Prefix]Class{}, map[string]Subject{}}
}

func (t *Tables) SetRow(k Key, r Row)                { t.Rows[k] = r }
func (t *Tables) DeleteRow(k Key)                    { delete(t.Rows, k) }
func (t *Tables) SetSubject(s Subject, r SubjectRow) { t.Subjects[s] = r }
func (t *Tables) DeleteSubject(s Subject)            { delete(t.Subjects, s) }
func (t *Tables) SetClass(p netip.Prefix, c Class)   { t.Classes[p] = c }
func (t *Tables) DeleteClass(p netip.Prefix)         { delete(t.Classes, p) }
func (t *Tables) SetPod(name string, s Subject)      { t.Pods[name] = s }

// Lookup decides as the BPF program does. port is that of who is connected to.
func (t *Tables) Lookup(s Subject, d Direction, id clustermesh.Identity, peer netip.Addr, proto clustermesh.Protocol, port uint16) Decision {
	if s == SubjectNone {
		return Decision{Allow: true}
	}
	row, ok := t.Subjects[s]
	if !ok {
		return Decision{Reason: ReasonNotLoaded}
	}
	a, ok := t.longest(s, PeerOf(id), d, proto, port)
	if !ok {
		a, _ = t.longest(s, PeerAny, d, proto, port)
	}
	var b Row
	if row.Flags.classes(d) {
		if c := t.class(peer); c != 0 {
			b, _ = t.longest(s, c, d, proto, port)
		}
	}
	return decide(row.Flags, d, a, b)
}

func (t *Tables) longest(s Subject, p Peer, d Direction, proto clustermesh.Protocol, port uint16) (Row, bool) {
	for bits := 16; bits >= 0; bits-- {
		k := Key{s, p, d, proto, uint8(bits), port &^ (1<<(16-bits) - 1)}
		if row, ok := t.Rows[k]; ok {
			return row, true
		}
	}
	row, ok := t.Rows[Key{Subject: s, Peer: p, Dir: d}]
	return row, ok
}

func (t *Tables) class(a netip.Addr) Class {
	a = a.Unmap()
	for bits := 128; bits >= 0; bits-- {
		p := netip.PrefixFrom(netip.AddrFrom16(a.As16()), bits).Masked()
		if a.Is4() && bits >= 96 {
			p, _ = a.Prefix(bits - 96)
		}
		if c, ok := t.Classes[p]; ok {
			return c
		}
	}
	return 0
}
