package agent

// SubjectKey is all that decides about a pod but for the other end: a hash of
// it, so that a changed policy is another subject. 0 is none: no row has it.
type SubjectKey uint64

// SubjectFlags of a subject row; the same in bpf/src/maps.h.
type SubjectFlags uint32

const (
	IsolatedIn SubjectFlags = 1 << iota // what no NetworkPolicy allows is forbidden
	IsolatedOut
	ClassesIn // the class of the other end counts, too
	ClassesOut
	SubjectClosed // its policy rows are not all there: nothing passes
)

// SubjectRow is there once all policy rows of the subject are.
type SubjectRow struct{ Flags SubjectFlags }

// PolicyPeer is the other end as policy rows name it: an identity, or a class
// of addresses (policyClass), or anybody.
type PolicyPeer uint64

const (
	// PeerAny rows hold for everybody who has no row of their own.
	PeerAny PolicyPeer = ^PolicyPeer(0)
	// PeerClass is the bit that marks classes of addresses.
	PeerClass PolicyPeer = 1 << 63
)

// Class reports whether p is a class of addresses.
func (p PolicyPeer) Class() bool { return p&PeerClass != 0 && p != PeerAny }

// Direction of a connection, seen from the subject.
type Direction uint8

const (
	Ingress Direction = iota
	Egress
)

// PolicyKey of a row. The longest match wins: Proto 0 is any protocol and port;
// else the upper Bits of Port count, and the others are zero.
type PolicyKey struct {
	Subject SubjectKey
	Peer    PolicyPeer
	Dir     Direction
	Proto   uint8
	Bits    uint8
	Port    uint16 // host order
}

// Verdict of a stage; the same in bpf/src/maps.h.
type Verdict uint8

const (
	NoVerdict Verdict = iota
	Accept
	Deny
	Pass
)

// PolicyStage is the rule of a tier that matches first.
type PolicyStage struct {
	Rule    uint32 // a hash of its name
	Rank    uint16 // the lower one wins
	Verdict Verdict
}

// PolicyRow says what the rules say of one peer, protocol and port.
type PolicyRow struct {
	Admin, Base PolicyStage
	Allow       uint32 // the rule of a NetworkPolicy that allows; 0 = none does
}

// ClassRow is the class of an address or of a prefix, with PeerClass set. 0: none,
// although a shorter prefix has one.
type ClassRow struct{ ID PolicyPeer }

// ConfigKey is the one key of the table of the node itself.
type ConfigKey struct{}

// ConfigFlags of the node; the same in bpf/src/maps.h.
type ConfigFlags uint32

const (
	EncryptAll ConfigFlags = 1 << iota // between nodes of the own cluster, too
	Masquerade                         // pods reach the world by the node's address
	Chained                            // another CNI is in charge of the node's stack
	Gateway                            // other nodes reach other clusters by this one
)

// ConfigRow is what programs know of the node they run on. Addresses that it has
// none of are zero.
type ConfigRow struct {
	Node4, Node6     Addr // underlay: what masquerading uses
	Tunnel4, Tunnel6 Addr
	Flags            ConfigFlags
	Cluster          uint16 // ID
	Node             uint16 // number
	PortMin, PortMax uint16 // source ports of translated connections, host order
	TunnelMTU        uint16 // what fits into the tunnel, where programs send into it past the stack; 0 = they do not
}

// Epoch is the kernel's number of the policy in force: flows that were judged in
// an earlier one are judged anew with their next packet.
type Epoch interface {
	// Next counts it up.
	Next() error
}
