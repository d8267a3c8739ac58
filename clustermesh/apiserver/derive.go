package apiserver

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// objectName names an object within its namespace.
type objectName struct{ Namespace, Name string }

func (n objectName) String() string { return n.Namespace + "/" + n.Name }

// labelRef is one label in one namespace: the index from pods to the services
// that may select them, and back.
type labelRef struct{ namespace, key, value string }

// deriveConfig says whose records are derived.
type deriveConfig struct {
	Cluster string
	ID      clustermesh.ID
	Bound   []netip.Prefix // all pod addresses lie in it; empty = anywhere
	// Tunnels are where nodes have their tunnel addresses in a chained cluster;
	// empty = nodes have pod prefixes of their own.
	Tunnels []netip.Prefix
	// SlicesGiven: EndpointSlices and readiness are somebody else's work.
	SlicesGiven bool
	// Identity and NodeNumber look numbers up; 0 = none yet.
	Identity   func(labelText string) uint32
	NodeNumber func(node string) uint16
	// Namespace hears which namespaces there are; nil = nobody asks.
	Namespace func(name string, exists bool)
	// Stored is what the store holds under a key at present, nil if nothing:
	// where the last good setting of a service is found after a restart.
	Stored func(key string) []byte
	// StoredUnder lists the keys the store holds under a prefix.
	StoredUnder func(prefix string) []string
}

// deriver holds the present objects and registrations and derives records from
// them, unit by unit: a change makes the units dirty that it may affect, flush
// derives those anew. What a unit yields depends on present state only; the one
// memory is the store's own record, for a service whose new settings are refused.
//
// It belongs to one goroutine.
type deriver struct {
	cfg deriveConfig

	services   map[objectName]*serviceState
	pods       map[objectName]*podState
	nodes      map[string]*nodeState
	namespaces map[string]*corev1.Namespace
	policies   map[unit]*policyState
	exports    map[objectName]*v1beta1.ServiceExport
	given      map[objectName]map[string]*discoveryv1.EndpointSlice // by service
	givenOf    map[objectName]objectName                            // slice → service
	nodeClaims map[string]*nodeClaim
	claims     map[objectName]*endpointClaim // by pod

	podsByLabel     map[labelRef]map[objectName]*podState
	podsByNamespace map[string]map[objectName]*podState
	podsByNode      map[string]map[objectName]*podState
	selects         map[labelRef]map[objectName]*serviceState // by the first pair of the selector
	podsByText      map[string]map[objectName]*podState       // by label text: who uses an identity
	claimsByAddress map[netip.Addr]map[objectName]*endpointClaim
	unnumbered      map[string]bool // label texts that may have no number yet
	unnumberedNodes map[string]bool
	nodesMoved      bool                          // prefixes must be shared out anew
	placed          map[string]clustermesh.Origin // chained: nodes whose pods have other addresses
	union           []netip.Prefix                // of the nodes' prefixes; nil = not computed

	units    map[unit]*unitOut
	troubled map[unit]bool   // units with problems
	owner    map[string]unit // by key: which unit yields it; an address may move from pod to pod
	dirty    map[unit]clustermesh.Origin
	since    map[unit]map[Ref]change // the last derivation
}

// unit is what is derived at once.
type unit struct {
	kind clustermesh.Kind // node, service (with its slices), address (a pod), identity, policy, clusterpolicy
	name objectName
}

// unitOut is what a unit yielded last.
type unitOut struct {
	keys     []string // sorted
	problems []Problem
}

type serviceState struct {
	svc      *corev1.Service // in force; nil = none was ever good in this process
	problem  *Problem        // why a newer one is not
	selector labels.Selector
	pairs    []labelRef // of the selector, sorted
}

type podState struct {
	pod  *corev1.Pod
	text string // of its security labels; "" = it has no identity of its own
}

type nodeState struct {
	node     *corev1.Node
	prefixes []netip.Prefix // its own, in the order of the source
	tunnel   []netip.Addr   // the first host address of each
	problem  *Problem
}

func newDeriver(cfg deriveConfig) *deriver {
	return &deriver{
		cfg:             cfg,
		services:        make(map[objectName]*serviceState),
		pods:            make(map[objectName]*podState),
		nodes:           make(map[string]*nodeState),
		namespaces:      make(map[string]*corev1.Namespace),
		policies:        make(map[unit]*policyState),
		exports:         make(map[objectName]*v1beta1.ServiceExport),
		given:           make(map[objectName]map[string]*discoveryv1.EndpointSlice),
		givenOf:         make(map[objectName]objectName),
		nodeClaims:      make(map[string]*nodeClaim),
		claims:          make(map[objectName]*endpointClaim),
		podsByLabel:     make(map[labelRef]map[objectName]*podState),
		podsByNamespace: make(map[string]map[objectName]*podState),
		podsByNode:      make(map[string]map[objectName]*podState),
		selects:         make(map[labelRef]map[objectName]*serviceState),
		podsByText:      make(map[string]map[objectName]*podState),
		claimsByAddress: make(map[netip.Addr]map[objectName]*endpointClaim),
		unnumbered:      make(map[string]bool),
		unnumberedNodes: make(map[string]bool),
		placed:          make(map[string]clustermesh.Origin),
		units:           make(map[unit]*unitOut),
		troubled:        make(map[unit]bool),
		owner:           make(map[string]unit),
		dirty:           make(map[unit]clustermesh.Origin),
		since:           make(map[unit]map[Ref]change),
	}
}

// touch makes a unit dirty. The oldest origin stays: it is when the first of the
// changes came to be.
func (d *deriver) touch(u unit, at clustermesh.Origin) {
	if old, ok := d.dirty[u]; !ok || at < old {
		d.dirty[u] = at
	}
}

// forget drops what was touched before a moment. touchAll finds again all that is
// there then; what is not would stay dirty for ever where nothing is flushed.
func (d *deriver) forget(before clustermesh.Origin) {
	maps.DeleteFunc(d.dirty, func(_ unit, at clustermesh.Origin) bool { return at < before })
}

// touchAll makes everything dirty: a new leader derives from nothing. what was
// yielded before is forgotten.
func (d *deriver) touchAll(at clustermesh.Origin) {
	d.units = make(map[unit]*unitOut)
	d.troubled = make(map[unit]bool)
	d.owner = make(map[string]unit)
	for name := range d.nodes {
		d.touch(nodeUnit(name), at)
	}
	for name := range d.services {
		d.touch(serviceUnit(name), at)
	}
	for name := range d.given {
		d.touch(serviceUnit(name), at)
	}
	for name := range d.exports {
		d.touch(serviceUnit(name), at)
	}
	for name := range d.pods {
		d.touch(podUnit(name), at)
	}
	for u := range d.policies {
		d.touch(u, at)
	}
	for text := range d.podsByText {
		d.unnumbered[text] = true
	}
	for name := range d.nodes {
		d.unnumberedNodes[name] = true
	}
}

func nodeUnit(name string) unit        { return unit{clustermesh.KindNode, objectName{"", name}} }
func serviceUnit(name objectName) unit { return unit{clustermesh.KindService, name} }
func podUnit(name objectName) unit     { return unit{clustermesh.KindAddress, name} }
func policyUnit(name objectName) unit  { return unit{clustermesh.KindPolicy, name} }
func clusterPolicyUnit(name string) unit {
	return unit{clustermesh.KindClusterPolicy, objectName{"", name}}
}
func identityUnit(text string) unit { return unit{clustermesh.KindIdentity, objectName{"", text}} }
func (d *deriver) key(scope clustermesh.Scope, r clustermesh.Record) string {
	return clustermesh.KeyOf(scope, d.cfg.Cluster, r).String()
}

// yield collects what one unit yields.
type yield struct {
	d        *deriver
	at       clustermesh.Origin
	values   map[string][]byte // by key; nil = whatever the store holds stays
	problems []Problem
}

func (y *yield) problem(p Problem) { y.problems = append(y.problems, p) }

// put encodes a record. One that cannot be stored is a problem of its object,
// and what the store holds stays.
func (y *yield) put(scope clustermesh.Scope, r clustermesh.Record, object string) {
	key := clustermesh.KeyOf(scope, y.d.cfg.Cluster, r)
	err := key.Validate()
	var value []byte
	if err == nil {
		value, err = clustermesh.Encode(r)
	}
	if err == nil && len(value) > kvstore.MaxValue {
		err = fmt.Errorf("%d bytes as a record; at most %d are allowed", len(value), kvstore.MaxValue)
		value = nil
	}
	if err != nil {
		y.problem(Problem{Object: object, What: "its record is not published", Why: printable(err.Error()),
			Fix: "make it smaller or correct it; until then what was published stays in force"})
		if key.Validate() != nil {
			return
		}
	}
	y.values[key.String()] = value
}

// keep leaves under key what the store holds.
func (y *yield) keep(key string) { y.values[key] = nil }

// flush derives all dirty units and hands over what changed: value nil =
// delete. Upserts of a unit come before its deletes.
func (d *deriver) flush(emit func(key string, value []byte)) {
	d.shareOut()
	work := d.dirty
	d.dirty = make(map[unit]clustermesh.Origin)
	var gone []string
	for _, u := range slices.SortedFunc(maps.Keys(work), compareUnits) {
		y := &yield{d: d, at: work[u], values: make(map[string][]byte)}
		d.derive(u, y)
		old := d.units[u]
		for _, key := range slices.Sorted(maps.Keys(y.values)) {
			value := y.values[key]
			d.owner[key] = u
			if value == nil && (old == nil || !slices.Contains(old.keys, key)) {
				value = d.cfg.Stored(key)
			}
			if value != nil {
				emit(key, value)
			}
		}
		if old != nil {
			for _, key := range old.keys {
				if _, still := y.values[key]; !still && d.owner[key] == u {
					delete(d.owner, key)
					gone = append(gone, key)
				}
			}
		}
		if delete(d.troubled, u); len(y.problems) > 0 {
			d.troubled[u] = true
		}
		if len(y.values) == 0 && len(y.problems) == 0 {
			delete(d.units, u)
			continue
		}
		d.units[u] = &unitOut{keys: slices.Sorted(maps.Keys(y.values)), problems: y.problems}
	}
	for _, key := range gone {
		if _, taken := d.owner[key]; !taken {
			emit(key, nil)
		}
	}
	clear(d.since)
}

// compareUnits: what is referred to comes first.
func compareUnits(a, b unit) int {
	return cmp.Or(cmp.Compare(unitOrder(a.kind), unitOrder(b.kind)),
		cmp.Compare(a.name.Namespace, b.name.Namespace), cmp.Compare(a.name.Name, b.name.Name))
}

func unitOrder(k clustermesh.Kind) int {
	switch k {
	case clustermesh.KindNode:
		return 0
	case clustermesh.KindIdentity:
		return 1
	case clustermesh.KindAddress:
		return 2
	case clustermesh.KindPolicy, clustermesh.KindClusterPolicy:
		return 3
	}
	return 4
}

func (d *deriver) derive(u unit, y *yield) {
	switch u.kind {
	case clustermesh.KindNode:
		d.deriveNode(u.name.Name, y)
	case clustermesh.KindIdentity:
		d.deriveIdentity(u.name.Name, y)
	case clustermesh.KindAddress:
		d.derivePod(u.name, y)
	case clustermesh.KindPolicy, clustermesh.KindClusterPolicy:
		d.derivePolicy(u, y)
	case clustermesh.KindService:
		d.deriveService(u.name, y)
	}
}

// problems are those of all units.
func (d *deriver) problems() []Problem {
	var ps []Problem
	for u := range d.troubled {
		ps = append(ps, d.units[u].problems...)
	}
	sortProblems(ps)
	return ps
}
