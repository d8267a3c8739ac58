package clustermesh

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// Limits of a record. They bound what one record can make a reader hold and
// keep every list within what its consumers have room for.
const (
	MaxEndpoints = 100  // of a slice
	MaxPrefixes  = 1024 // of one list of a record: with another CNI in charge, a node's are its pods' addresses

	maxPorts    = 256
	maxAddrs    = 64 // of one list of a record
	maxLabels   = 512
	maxNames    = 64  // mesh addresses, capabilities, failover
	maxText     = 512 // bytes of a short text: names, hosts, versions
	maxLongText = 4 << 10
	// An annotation may be longer than any other text; its record's limit bounds it.
	maxAnnotation = 64 << 10
	maxSeconds    = 1 << 31
)

// decoder turns values into records. It belongs to one goroutine. The generated
// messages are reused, so that a list of a hundred thousand records leaves
// little garbage.
type decoder struct {
	in    *interner // nil: strings are copied
	buf   []byte    // of decompressed values
	ports []Port
	named []NamedPort
	// The borrowed records.
	address  Address
	identity IdentityRecord

	pb struct {
		cluster       pb.Cluster
		node          pb.Node
		service       pb.Service
		slice         pb.EndpointSlice
		identity      pb.Identity
		address       pb.Address
		workload      pb.Workload
		policy        pb.Policy
		clusterPolicy pb.ClusterPolicy
		peer          pb.Peer
		drain         pb.Drain
	}
}

func newDecoder(intern bool) *decoder {
	d := &decoder{}
	if intern {
		d.in = newInterner()
	}
	return d
}

// decode reads one value. An *Address or *IdentityRecord is borrowed: it lives
// until the next call and its strings alias name and value; owned copies it.
// All other records are the caller's.
func (d *decoder) decode(kind Kind, name string, value []byte) (Record, error) {
	if kind != KindAddress && kind != KindIdentity { // these parse their names
		if err := validateName(kind, name); err != nil {
			return nil, err
		}
	}
	plain, buf, err := unpack(value, d.buf)
	d.buf = buf
	if err != nil {
		return nil, err
	}
	switch kind {
	case KindAddress:
		return d.decodeAddress(name, plain)
	case KindIdentity:
		return d.decodeIdentity(name, plain)
	case KindEndpointSlice:
		return d.decodeSlice(name, plain)
	case KindService:
		return d.decodeService(name, plain)
	case KindNode:
		return d.decodeNode(name, plain)
	case KindCluster:
		return d.decodeCluster(plain)
	case KindPeer:
		return d.decodePeer(name, plain)
	case KindDrain:
		return d.decodeDrain(name, plain)
	case KindWorkload:
		return d.decodeWorkload(name, plain)
	case KindPolicy:
		return d.decodePolicy(name, plain)
	case KindClusterPolicy:
		return d.decodeClusterPolicy(name, plain)
	}
	return nil, fmt.Errorf("unknown kind %s", quote(string(kind)))
}

// owned makes a borrowed record the caller's.
func owned(r Record) Record {
	switch r := r.(type) {
	case *Address:
		return r.clone(nil)
	case *IdentityRecord:
		return r.clone()
	}
	return r
}

func (r *Address) clone(in *interner) *Address {
	c := *r
	c.Name.Node = in.string(r.Name.Node)
	c.Owner = in.unique(r.Owner)
	c.NamedPorts = in.namedPorts(r.NamedPorts)
	c.Namespace = in.string(r.Namespace)
	c.Pod = in.unique(r.Pod)
	return &c
}

func (r *IdentityRecord) clone() *IdentityRecord {
	c := *r
	c.Labels = nil // empty is nil, always
	if len(r.Labels) > 0 {
		c.Labels = slices.Clone(r.Labels)
	}
	for i, l := range c.Labels {
		c.Labels[i] = Label{Key: strings.Clone(l.Key), Value: strings.Clone(l.Value)}
	}
	return &c
}

func (d *decoder) decodeAddress(name string, plain []byte) (Record, error) {
	m := &d.pb.address
	*m = pb.Address{NamedPorts: m.NamedPorts[:0]}
	if err := m.UnmarshalVTUnsafe(plain); err != nil {
		return nil, err
	}
	at, err := parseAddressName(name)
	if err != nil {
		return nil, err
	}
	var c checker
	c.text("owner", m.Owner, maxText)
	c.text("namespace", m.Namespace, maxText)
	c.text("name", m.Name, maxText)
	c.count("named ports", len(m.NamedPorts), maxPorts)
	d.named = d.named[:0]
	for _, p := range m.NamedPorts {
		c.text("port name", p.Name, maxPortName)
		d.named = append(d.named, NamedPort{Name: p.Name, Protocol: c.protocol(p.Protocol), Port: c.port("named port", p.Port, 1)})
	}
	if c.err != nil {
		return nil, c.err
	}
	d.address = Address{
		Name: at, Identity: Identity(m.Identity), Owner: m.Owner, NamedPorts: d.named,
		Namespace: m.Namespace, Pod: m.Name, Origin: Origin(m.Origin),
	}
	if len(d.named) == 0 {
		d.address.NamedPorts = nil
	}
	return &d.address, nil
}

func (d *decoder) decodeIdentity(name string, plain []byte) (Record, error) {
	m := &d.pb.identity
	*m = pb.Identity{Labels: m.Labels[:0]}
	if err := m.UnmarshalVTUnsafe(plain); err != nil {
		return nil, err
	}
	id, err := parseIdentityName(name)
	if err != nil {
		return nil, err
	}
	var c checker
	c.count("labels", len(m.Labels), maxLabels)
	r := &d.identity
	*r = IdentityRecord{ID: id, Labels: r.Labels[:0], Origin: Origin(m.Origin)}
	for i, l := range m.Labels {
		c.text("label key", l.Key, maxText)
		c.text("label value", l.Value, maxText)
		if l.Key == "" || i > 0 && l.Key <= m.Labels[i-1].Key {
			c.fail("labels are not sorted by key, each once: %s", quote(l.Key))
		}
		r.Labels = append(r.Labels, Label{Key: l.Key, Value: l.Value})
	}
	if c.err != nil {
		return nil, c.err
	}
	return r, nil
}

func (d *decoder) decodeSlice(name string, plain []byte) (Record, error) {
	m := &d.pb.slice
	*m = pb.EndpointSlice{Ports: m.Ports[:0], Endpoints: m.Endpoints[:0]}
	if err := m.UnmarshalVTUnsafe(plain); err != nil {
		return nil, err
	}
	var c checker
	c.count("endpoints", len(m.Endpoints), MaxEndpoints)
	c.count("ports", len(m.Ports), maxPorts)
	if c.err != nil {
		return nil, c.err
	}
	ns, rest := cutName(name)
	service, slice := cutName(rest)
	r := &EndpointSlice{
		Name:      SliceName{Service: ServiceName{d.in.string(ns), d.in.string(service)}, Slice: d.in.unique(slice)},
		Ports:     d.decodePorts(&c, m.Ports),
		Endpoints: make([]Endpoint, len(m.Endpoints)),
		Origin:    Origin(m.Origin),
	}
	for i, e := range m.Endpoints {
		c.text("zone", e.Zone, maxText)
		c.text("hostname", e.Hostname, maxPortName)
		r.Endpoints[i] = Endpoint{
			Address: c.addr("endpoint", e.Address), Node: c.port("node number", e.Node, 0), Zone: d.in.string(e.Zone),
			Ready: e.Ready, Serving: e.Serving, Terminating: e.Terminating, Hints: c.hints(e), Hostname: MakeHostname(strings.Clone(e.Hostname)),
		}
		if i > 0 && c.err == nil && r.Endpoints[i].Address.Is4() != r.Endpoints[0].Address.Is4() {
			c.fail("endpoints of both address families in one slice")
		}
	}
	if len(r.Endpoints) == 0 {
		r.Endpoints = nil
	}
	return r, c.err
}

func (d *decoder) decodeService(name string, plain []byte) (Record, error) {
	m := &d.pb.service
	*m = pb.Service{
		Ports: m.Ports[:0], Frontends: m.Frontends[:0], Failover: m.Failover[:0],
		External: m.External[:0], SourceRanges: m.SourceRanges[:0],
	}
	if err := m.UnmarshalVTUnsafe(plain); err != nil {
		return nil, err
	}
	var c checker
	c.count("ports", len(m.Ports), maxPorts)
	c.text("affinity", m.Affinity, maxText)
	c.text("min-healthy", m.MinHealthy, maxText)
	c.text("import", m.Import, maxName)
	if m.Weight > 1<<16-1 {
		c.fail("weight %d is above 65535", m.Weight)
	}
	ns, service := cutName(name)
	r := &Service{
		Name:  ServiceName{d.in.string(ns), d.in.string(service)},
		Ports: d.decodePorts(&c, m.Ports), Frontends: c.addrs("frontends", m.Frontends),
		Global: m.Global, Shared: m.Shared, Weight: uint16(m.Weight), HasWeight: m.HasWeight,
		Affinity: Affinity(d.in.string(m.Affinity)), Failover: c.names("failover", m.Failover, d.in),
		MinHealthy: d.in.string(m.MinHealthy), SessionAffinity: c.seconds("session affinity", m.SessionAffinitySeconds),
		Headless: m.Headless, PublishNotReady: m.PublishNotReady,
		Outside: c.outside(m), Export: c.export(m, d.in), Import: d.in.unique(m.Import),
		ExternalLocal: m.ExternalLocal, InternalLocal: m.InternalLocal, Distribution: c.distribution(m.Distribution),
		HealthCheckPort: c.port("health check port", m.HealthCheckPort, 0), Origin: Origin(m.Origin),
	}
	return r, c.err
}

func (d *decoder) decodeNode(name string, plain []byte) (Record, error) {
	m := &d.pb.node
	*m = pb.Node{
		UnderlayAddresses: m.UnderlayAddresses[:0], TunnelAddresses: m.TunnelAddresses[:0], PodPrefixes: m.PodPrefixes[:0],
	}
	if err := m.UnmarshalVTUnsafe(plain); err != nil {
		return nil, err
	}
	var c checker
	c.text("WireGuard endpoint", m.WireguardEndpoint, maxText)
	c.text("zone", m.Zone, maxText)
	r := &Node{
		Name: d.in.string(name), Number: c.port("node number", m.Number, 1),
		UnderlayAddresses: c.addrs("underlay addresses", m.UnderlayAddresses),
		TunnelAddresses:   c.addrs("tunnel addresses", m.TunnelAddresses),
		PodPrefixes:       c.prefixes("pod prefixes", m.PodPrefixes),
		WireGuardEndpoint: d.in.unique(m.WireguardEndpoint), WireGuardPort: c.port("WireGuard port", m.WireguardPort, 0), Gateway: m.Gateway, Zone: d.in.string(m.Zone),
		Origin: Origin(m.Origin),
	}
	switch len(m.WireguardKey) {
	case 0, len(r.WireGuardKey):
		copy(r.WireGuardKey[:], m.WireguardKey)
	default:
		c.fail("WireGuard key has %d bytes; it should have 32", len(m.WireguardKey))
	}
	return r, c.err
}

func (d *decoder) decodeCluster(plain []byte) (Record, error) {
	m := &d.pb.cluster
	*m = pb.Cluster{}
	if err := m.UnmarshalVT(plain); err != nil {
		return nil, err
	}
	var c checker
	c.check(ValidateClusterName(m.Name))
	c.text("version", m.Version, maxText)
	c.text("topology", m.Topology, maxText)
	r := &Cluster{
		Name: m.Name, ID: c.clusterID(m.Id), Incarnation: m.Incarnation, CABundle: m.CaBundle,
		MeshAddresses: c.names("mesh addresses", m.MeshAddresses, nil), PodPrefixes: c.prefixes("pod prefixes", m.PodPrefixes),
		Capabilities: c.names("capabilities", m.Capabilities, nil), Version: m.Version, Topology: Topology(m.Topology), Origin: Origin(m.Origin),
	}
	if len(r.CABundle) == 0 {
		r.CABundle = nil
	}
	return r, c.err
}

// hints reads the hints of an endpoint: sorted, each once, so that there
// is one spelling.
func (c *checker) hints(e *pb.Endpoint) Hints {
	if len(e.ForZones)+len(e.ForNodes) == 0 || c.err != nil {
		return Hints{}
	}
	c.count("zone hints", len(e.ForZones), maxHints)
	c.count("node hints", len(e.ForNodes), maxHints)
	nodes := make([]uint16, 0, maxHints)
	for _, n := range e.ForNodes {
		nodes = append(nodes, c.port("node hint", n, 1))
	}
	for _, z := range e.ForZones {
		c.check(checkHintZone(z))
	}
	if c.err != nil {
		return Hints{}
	}
	return MakeHints(e.ForZones, nodes)
}

func (d *decoder) decodePorts(c *checker, ports []*pb.Port) []Port {
	d.ports = d.ports[:0]
	for _, p := range ports {
		c.text("port name", p.Name, maxPortName)
		d.ports = append(d.ports, Port{
			Name: p.Name, Protocol: c.protocol(p.Protocol), Port: c.port("port", p.Port, 1), NodePort: c.port("node port", p.NodePort, 0),
		})
	}
	if c.err != nil {
		return nil
	}
	return d.in.portList(d.ports)
}
