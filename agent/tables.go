package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Owners of rows that no cluster has said, see State.known.
const (
	// ownerNode has what belongs to this node alone (its pods): known once
	// SetPods was called.
	ownerNode clustermesh.ID = 0
	// ownerPolicy has what follows from policies and the pods of this node: known
	// once both are and the rows are computed.
	ownerPolicy clustermesh.ID = clustermesh.MaxID + 1
	// ownerHostPorts has what follows from the pods of this node and from what the
	// own cluster says of them: known once both are.
	ownerHostPorts clustermesh.ID = clustermesh.MaxID + 2
)

// tableSet is all tables that hold what the clusters say, with their deltas.
type tableSet struct {
	config        *Delta[ConfigKey, ConfigRow]
	peers         *Delta[PeerKey, PeerRow]
	routes        *Delta[RouteKey, RouteRow]
	policy        *Delta[PolicyKey, PolicyRow]
	ipPrefixes    *Delta[Prefix, IPCacheRow]
	ips           *Delta[Addr, IPCacheRow]
	classPrefixes *Delta[Prefix, ClassRow]
	classes       *Delta[Addr, ClassRow]
	subjects      *Delta[SubjectKey, SubjectRow]
	endpoints     *Delta[Addr, EndpointRow]
	sourceRanges  *Delta[RangeKey, RangeRow]
	slots         *Delta[SlotKey, SlotRow]
	maglev        *Delta[MaglevKey, MaglevRow]
	services      *Delta[ServiceKey, ServiceRow]

	wishes wishes
	epoch  epochTrack
}

// anyDelta is what can be done with a delta without knowing its rows.
type anyDelta interface {
	Pending() int
	Stuck() int
	Len() int
	Held() int
	Size() int
	Urgent() int
	Resync(n int) (bool, error)
	StopResync()
	Scanned() bool
	Release()
	Hurry(bool)
	Problem() error
	RetryAt() time.Time
	name() string
	counts() (written, removed, failures, drifted uint64)
}

func (d *Delta[K, V]) name() string { return d.Name }

func (d *Delta[K, V]) counts() (written, removed, failures, drifted uint64) {
	return d.written, d.removed, d.failures, d.drifted
}

// newTableSet makes the deltas. byPrefix says whose pod prefix an address range
// lies in; own is this node's cluster.
func newTableSet(t Tables, own clustermesh.ID, byPrefix func(netip.Prefix) clustermesh.ID, known func(clustermesh.ID) bool) *tableSet {
	ofIP := func(v IPCacheRow, p netip.Prefix) clustermesh.ID {
		if c := clustermesh.Identity(v.Identity).Cluster(); c != 0 {
			return c
		}
		return byPrefix(p)
	}
	s := &tableSet{epoch: epochTrack{epoch: t.Epoch, due: true}, wishes: newWishes()}
	s.config = NewDelta(TableConfig, t.Config, func(ConfigKey, ConfigRow) clustermesh.ID { return own }, known)
	s.peers = NewDelta(TablePeers, t.Peers, func(_ PeerKey, v PeerRow) clustermesh.ID {
		for p := range allowedPrefixes(v) {
			return byPrefix(p)
		}
		return own
	}, known)
	s.routes = NewDelta(TableRoutes, t.Routes, func(k RouteKey, _ RouteRow) clustermesh.ID {
		if k.Kind == RoutePod {
			return ownerNode
		}
		return byPrefix(k.Prefix.Netip())
	}, known)
	s.policy = NewDelta(TablePolicy, t.Policy, func(k PolicyKey, _ PolicyRow) clustermesh.ID {
		if _, wanted := s.wishes.subjects[k.Subject]; !wanted || k.Peer == PeerAny || k.Peer.Class() || !known(ownerPolicy) {
			return ownerPolicy
		}
		return clustermesh.Identity(k.Peer).Cluster()
	}, known)
	s.ipPrefixes = NewDelta(TableIPPrefixes, t.IPPrefixes, func(k Prefix, v IPCacheRow) clustermesh.ID {
		return ofIP(v, k.Netip())
	}, known)
	s.ips = NewDelta(TableIPs, t.IPs, func(k Addr, v IPCacheRow) clustermesh.ID {
		return ofIP(v, single(k))
	}, known)
	s.classPrefixes = NewDelta(TableClassPrefixes, t.ClassPrefixes, func(Prefix, ClassRow) clustermesh.ID { return ownerPolicy }, known)
	s.classes = NewDelta(TableClasses, t.Classes, func(k Addr, _ ClassRow) clustermesh.ID {
		if !known(ownerPolicy) {
			return ownerPolicy
		}
		return byPrefix(single(k)) // its named ports are for its cluster to say
	}, known)
	s.subjects = NewDelta(TableSubjects, t.Subjects, func(SubjectKey, SubjectRow) clustermesh.ID { return ownerPolicy }, known)
	s.endpoints = NewDelta(TableEndpoints, t.Endpoints, func(Addr, EndpointRow) clustermesh.ID { return ownerNode }, known)
	s.sourceRanges = NewDelta(TableSourceRanges, t.SourceRanges, func(RangeKey, RangeRow) clustermesh.ID { return own }, known)
	s.slots = NewDelta(TableSlots, t.Slots, func(k SlotKey, _ SlotRow) clustermesh.ID {
		return clustermesh.ID(k.Cluster)
	}, known)
	s.maglev = NewDelta(TableMaglev, t.Maglev, func(MaglevKey, MaglevRow) clustermesh.ID { return own }, known)
	s.services = NewDelta(TableServices, t.Services, func(_ ServiceKey, v ServiceRow) clustermesh.ID {
		if isHostPort(v) {
			return ownerHostPorts
		}
		return own
	}, known)
	return s
}

// all are the deltas in the order in which references enter.
func (t *tableSet) all() []anyDelta {
	return []anyDelta{
		t.config, t.peers, t.routes, t.policy, t.ipPrefixes, t.ips, t.classPrefixes, t.classes,
		t.subjects, t.endpoints, t.sourceRanges, t.slots, t.maglev, t.services,
	}
}

// dump is a table as text: the rows that are wanted or, with actual, those the
// kernel is known to hold.
func (t *tableSet) dump(name string, actual bool) (string, bool) {
	switch name {
	case TableConfig:
		return dumpDelta(t.config, ConfigText, actual), true
	case TablePeers:
		return dumpDelta(t.peers, PeerText, actual), true
	case TableRoutes:
		return dumpDelta(t.routes, RouteText, actual), true
	case TablePolicy:
		return dumpDelta(t.policy, PolicyText, actual), true
	case TableIPPrefixes:
		return dumpDelta(t.ipPrefixes, IPPrefixText, actual), true
	case TableIPs:
		return dumpDelta(t.ips, IPText, actual), true
	case TableClassPrefixes:
		return dumpDelta(t.classPrefixes, ClassPrefixText, actual), true
	case TableClasses:
		return dumpDelta(t.classes, ClassText, actual), true
	case TableSubjects:
		return dumpDelta(t.subjects, SubjectText, actual), true
	case TableEndpoints:
		return dumpDelta(t.endpoints, EndpointText, actual), true
	case TableSourceRanges:
		return dumpDelta(t.sourceRanges, RangeText, actual), true
	case TableSlots:
		return dumpDelta(t.slots, SlotText, actual), true
	case TableMaglev:
		return dumpDelta(t.maglev, MaglevText, actual), true
	case TableServices:
		return dumpDelta(t.services, ServiceText, actual), true
	}
	return "", false
}

// dumpDelta prints wanted rows, or what the kernel is known to hold. Rows that
// are not known because a write failed half way are left out.
func dumpDelta[K comparable, V comparable](d *Delta[K, V], text Text[K, V], actual bool) string {
	if !actual {
		return text.Print(d.wanted)
	}
	return text.Print(d.actualRows())
}

// actualRows are the rows that the kernel is known to hold.
func (d *Delta[K, V]) actualRows() map[K]V {
	rows := make(map[K]V, len(d.wanted)+len(d.held))
	for k, v := range d.wanted {
		if _, differs := d.differs(k); !differs {
			rows[k] = v
		}
	}
	for _, m := range []map[K]actual[V]{d.dirty, d.leaving, d.stuck} {
		for k, a := range m {
			if a.state == present {
				rows[k] = a.value
			}
		}
	}
	for k, v := range d.held {
		rows[k] = v
	}
	return rows
}

// allowedPrefixes are the prefixes of a WireGuard peer.
func allowedPrefixes(v PeerRow) func(func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for s := range strings.SplitSeq(v.Allowed, ",") {
			if p, err := netip.ParsePrefix(s); err == nil && !yield(p) {
				return
			}
		}
	}
}

func single(a Addr) netip.Prefix {
	ip := a.IP()
	return netip.PrefixFrom(ip, ip.BitLen())
}

// prefixSet answers whether an address range lies in one of its prefixes.
type prefixSet struct {
	prefixes map[netip.Prefix]struct{}
	lengths  map[int]struct{} // of both families; few
}

func (s *prefixSet) add(p netip.Prefix) {
	if s.prefixes == nil {
		s.prefixes, s.lengths = map[netip.Prefix]struct{}{}, map[int]struct{}{}
	}
	s.prefixes[p.Masked()] = struct{}{}
	s.lengths[p.Bits()] = struct{}{}
}

func (s *prefixSet) covers(p netip.Prefix) bool {
	for bits := range s.lengths {
		if bits > p.Bits() {
			continue
		}
		if wider, err := p.Addr().Prefix(bits); err == nil {
			if _, ok := s.prefixes[wider]; ok {
				return true
			}
		}
	}
	return false
}

// problems are the tables that refuse rows.
func (t *tableSet) problems() []clustermesh.Problem {
	var out []clustermesh.Problem
	for _, d := range t.all() {
		if err := d.Problem(); err != nil {
			out = append(out, tableProblem(d.name(), d.Stuck(), d.Len(), err))
		} else if nearlyFull(d) {
			out = append(out, clustermesh.Problem{
				What: fmt.Sprintf("table %s is nearly full: %d of %d rows", d.name(), d.Len()+d.Held(), d.Size()),
				Why:  "what comes beyond its size does not get into the kernel",
				Fix:  "give the agent a larger table " + d.name() + " and restart it, or take services, policies or clusters away",
			})
		}
	}
	return append(out, t.policyProblems()...)
}

// nearlyFull: nine rows in ten are taken.
func nearlyFull(d anyDelta) bool {
	size := d.Size()
	return size > 0 && d.Len()+d.Held() >= size-size/10
}

func tableProblem(name string, stuck, wanted int, err error) clustermesh.Problem {
	fix := "it is tried again by itself; see the log of the agent and of the kernel"
	if errors.Is(err, ErrFull) {
		fix = fmt.Sprintf("give the agent a larger table %s (it wants %d rows now) and restart it, or take services or clusters away", name, wanted)
	}
	return clustermesh.Problem{
		What: fmt.Sprintf("table %s: %d of %d rows are not in the kernel", name, stuck, wanted),
		Why:  err.Error(),
		Fix:  fix,
	}
}
