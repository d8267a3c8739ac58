package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Subject stands for all that decides about the traffic of a pod but for the
// other end: the rules that apply to it, in order, with its named ports put in.
type Subject uint64

const (
	// SubjectNone: no policy selects the pod, everything may pass.
	SubjectNone Subject = 0
	// SubjectUnknown: the labels of the pod are not known yet and some policy
	// might select it. It has no rows: nothing passes.
	SubjectUnknown Subject = ^Subject(0)
)

func (s Subject) String() string {
	switch s {
	case SubjectNone:
		return "none"
	case SubjectUnknown:
		return "unknown"
	}
	return fmt.Sprintf("%016x", uint64(s))
}

// Peer is the other end, as policy rows name it.
type Peer uint64

const (
	// PeerAny rows hold for everybody who has no row of their own.
	PeerAny Peer = ^Peer(0)
	// classBit marks address classes.
	classBit Peer = 1 << 63
)

// PeerOf is an identity as a peer.
func PeerOf(id clustermesh.Identity) Peer { return Peer(id) }

// IsClass reports whether p is an address class.
func (p Peer) IsClass() bool { return p&classBit != 0 && p != PeerAny }

func (p Peer) String() string {
	switch {
	case p == PeerAny:
		return "any"
	case p.IsClass():
		return fmt.Sprintf("class:%016x", uint64(p))
	}
	return fmt.Sprintf("%d:%d", clustermesh.Identity(p).Cluster(), clustermesh.Identity(p).Number())
}

// Class is what rules by address can tell of an address, as a Peer. 0: nothing.
type Class = Peer

// Direction of a connection, seen from the subject.
type Direction uint8

const (
	Ingress Direction = iota
	Egress
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Key of a policy row. The longest match wins: Proto 0 is any protocol (and any
// port); else the upper Bits of Port count.
type Key struct {
	Subject Subject
	Peer    Peer
	Dir     Direction
	Proto   clustermesh.Protocol
	Bits    uint8
	Port    uint16 // host order, the other bits zero
}

// Verdict of a stage.
type Verdict uint8

const (
	NoVerdict Verdict = iota
	Accept
	Deny
	Pass
)

func (v Verdict) String() string {
	return [...]string{"none", "accept", "deny", "pass"}[v&3]
}

// Stage is the rule of a tier that matches first: the lowest rank, from 1.
type Stage struct {
	Rule    uint32 // RuleID of its name
	Rank    uint16
	Verdict Verdict
}

// Row says what the rules say about one peer, protocol and port.
type Row struct {
	Admin Stage
	Base  Stage
	Allow uint32 // RuleID of the first NetworkPolicy rule that allows; 0 = none
}

// SubjectFlags of a subject row.
type SubjectFlags uint8

const (
	IsolatedIn SubjectFlags = 1 << iota // what no NetworkPolicy allows is forbidden
	IsolatedOut
	ClassesIn // the class of the other end counts, too
	ClassesOut
)

// SubjectRow is written when all policy rows of the subject are there.
type SubjectRow struct{ Flags SubjectFlags }

func (f SubjectFlags) isolated(d Direction) bool { return f&(IsolatedIn<<d) != 0 }
func (f SubjectFlags) classes(d Direction) bool  { return f&(ClassesIn<<d) != 0 }

func (f SubjectFlags) String() string {
	s := ""
	for i, name := range []string{"isolated-in", "isolated-out", "classes-in", "classes-out"} {
		if f&(1<<i) != 0 {
			s += "," + name
		}
	}
	if s == "" {
		return "-"
	}
	return s[1:]
}

// Sink takes the rows that Apply and Sweep find changed. The kernel should get
// rows before subjects and classes, those before pods, and lose them in reverse.
type Sink interface {
	SetRow(Key, Row)
	DeleteRow(Key)
	SetSubject(Subject, SubjectRow)
	DeleteSubject(Subject)
	// SetClass: single addresses go into a hash, others into a trie. Class 0 says
	// that the prefix has none although a shorter one has.
	SetClass(netip.Prefix, Class)
	DeleteClass(netip.Prefix)
	// SetPod says which subject a pod of SetPod has now.
	SetPod(name string, s Subject)
}

// hash64 is the first 8 bytes of the SHA-256 of a text.
func hash64(text string) uint64 {
	sum := sha256.Sum256([]byte(text))
	return binary.BigEndian.Uint64(sum[:8])
}

func subjectOf(text string) Subject {
	s := Subject(hash64("subject\n" + text))
	if s == SubjectNone || s == SubjectUnknown {
		s = 1
	}
	return s
}

func classOf(text string) Class {
	c := Class(hash64("class\n"+text)) | classBit
	if c == PeerAny {
		c--
	}
	return c
}

// RuleID is the number of a rule in rows: a hash of its name, never 0.
func RuleID(name string) uint32 {
	id := uint32(hash64("rule\n"+name) >> 32)
	if id == 0 {
		id = 1
	}
	return id
}

// Width is how much of protocol and port a row leaves open, from 0. Rows of one
// peer are nested: narrow ones are to be written first and to leave last, or a
// wide one would speak for them in between.
func (k Key) Width() int {
	if k.Proto == 0 {
		return 17
	}
	return 16 - int(k.Bits)
}
