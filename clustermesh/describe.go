package clustermesh

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Describe is a record as one line of text: stable, with foreign text escaped,
// without the origin, so that records that are Equal read alike. Fields that are
// empty are left out.
func Describe(r Record) string {
	var l line
	switch r := r.(type) {
	case *Cluster:
		l.describeCluster(r)
	case *Node:
		l.describeNode(r)
	case *Service:
		l.describeService(r)
	case *EndpointSlice:
		l.list("ports", texts(r.Ports, describePort))
		l.list("endpoints", texts(r.Endpoints, describeEndpoint))
	case *IdentityRecord:
		for _, label := range r.Labels {
			l.word(describeLabel(label))
		}
	case *Address:
		l.field("identity", describeIdentity(r.Identity))
		if r.Namespace != "" || r.Pod != "" {
			l.field("pod", escape(r.Namespace)+"/"+escape(r.Pod))
		}
		l.text("owner", r.Owner)
		l.list("ports", texts(r.NamedPorts, func(p NamedPort) string {
			return describePort(Port{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
		}))
	case *Policy:
		l.text("json", string(r.JSON))
	case *ClusterPolicy:
		l.text("json", string(r.JSON))
	case *Workload:
		l.text("node", r.Node)
		l.text("owner", r.Owner)
		l.flag("host-network", r.HostNetwork)
		l.list("host-ports", texts(r.HostPorts, describeHostPort))
		l.describeProbe(r.Readiness)
	case *Drain:
		l.describeDrain(r)
	case *Peer:
		l.field("id", strconv.Itoa(int(r.ID)))
		l.describeBundle(r.CABundle)
		l.list("mesh", texts(r.MeshAddresses, escape))
		l.list("pods", stringers(r.PodPrefixes))
		l.number("max-keys", r.MaxKeys)
		l.number("max-bytes", r.MaxBytes)
		if !r.Joined.IsZero() {
			l.field("joined", r.Joined.UTC().Format(time.RFC3339))
		}
	}
	return l.b.String()
}

func (l *line) describeCluster(r *Cluster) {
	l.text("name", r.Name)
	l.field("id", strconv.Itoa(int(r.ID)))
	l.field("incarnation", fmt.Sprintf("%016x", r.Incarnation))
	l.describeBundle(r.CABundle)
	l.list("mesh", texts(r.MeshAddresses, escape))
	l.list("pods", stringers(r.PodPrefixes))
	l.list("capabilities", texts(r.Capabilities, escape))
	l.text("version", r.Version)
	l.text("topology", string(r.Topology))
}

func (l *line) describeNode(r *Node) {
	l.field("number", strconv.Itoa(int(r.Number)))
	l.list("underlay", stringers(r.UnderlayAddresses))
	l.list("tunnel", stringers(r.TunnelAddresses))
	l.list("pods", stringers(r.PodPrefixes))
	if r.WireGuardKey != [32]byte{} {
		l.field("wireguard", base64.StdEncoding.EncodeToString(r.WireGuardKey[:]))
	}
	l.text("endpoint", r.WireGuardEndpoint)
	if r.WireGuardPort != 0 {
		l.field("port", strconv.Itoa(int(r.WireGuardPort)))
	}
	l.flag("gateway", r.Gateway)
	l.text("zone", r.Zone)
}

func (l *line) describeService(r *Service) {
	l.list("ports", texts(r.Ports, describePort))
	l.list("frontends", stringers(r.Frontends))
	l.flag("global", r.Global)
	l.flag("shared", r.Shared)
	if r.HasWeight {
		l.field("weight", strconv.Itoa(int(r.Weight)))
	}
	l.text("affinity", string(r.Affinity))
	l.list("failover", texts(r.Failover, escape))
	l.text("min-healthy", r.MinHealthy)
	l.duration("session-affinity", r.SessionAffinity)
	l.flag("headless", r.Headless)
	l.flag("publish-not-ready", r.PublishNotReady)
	if r.Outside != nil {
		l.list("external", texts(r.Outside.Addresses, describeExternal))
		l.list("source-ranges", stringers(r.Outside.SourceRanges))
	}
	l.flag("external-local", r.ExternalLocal)
	l.flag("internal-local", r.InternalLocal)
	l.text("distribution", r.Distribution.String())
	l.number("health-check-port", uint64(r.HealthCheckPort))
	l.describeExport(r.Export)
	l.text("import", r.Import)
}

func (l *line) describeExport(e *Export) {
	if e == nil {
		return
	}
	l.field("exported", e.Created.Time().Format(time.RFC3339))
	families := ""
	if e.IPv4 {
		families = "4"
	}
	if e.IPv6 {
		families += "6"
	}
	l.text("families", families)
	l.list("app-protocols", texts(e.AppProtocols, escape))
	l.text("traffic-distribution", e.TrafficDistribution)
	l.list("labels", texts(e.Labels, describeLabel))
	l.list("annotations", texts(e.Annotations, describeLabel))
}

func describeLabel(l Label) string { return escape(l.Key) + "=" + escape(l.Value) }

func (l *line) describeProbe(p *Probe) {
	if p == nil {
		return
	}
	l.field("probe", fmt.Sprintf("%s:%d%s", escape(p.Kind), p.Port, escapePath(p.Path)))
	l.duration("period", p.Period)
	l.duration("timeout", p.Timeout)
	l.duration("initial-delay", p.InitialDelay)
	l.number("success", uint64(p.SuccessThreshold))
	l.number("failure", uint64(p.FailureThreshold))
}

// describeBundle shows the fingerprint of the first certificate, of which every
// place that shows one shows the beginning, and while a CA is replaced how many
// more there are: the certificates themselves fit no line.
func (l *line) describeBundle(bundle []byte) {
	if len(bundle) == 0 {
		return
	}
	var first string
	more := 0
	for rest := bundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch {
		case block.Type != "CERTIFICATE":
		case first == "":
			first = shortHash(block.Bytes)
		default:
			more++
		}
	}
	switch {
	case first == "":
		l.field("ca", fmt.Sprintf("unreadable(%s,%dB)", shortHash(bundle), len(bundle)))
	case more > 0:
		l.field("ca", fmt.Sprintf("%s+%d", first, more))
	default:
		l.field("ca", first)
	}
}

// shortHash is the first 16 hexadecimal digits of a SHA-256.
func shortHash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func describeIdentity(i Identity) string {
	return fmt.Sprintf("%d(%d:%d)", uint32(i), i.Cluster(), i.Number())
}

// describePort is name:TCP:80, with the node port after a plus sign.
func describePort(p Port) string {
	s := p.Protocol.String() + ":" + strconv.Itoa(int(p.Port))
	if p.Name != "" {
		s = escape(p.Name) + ":" + s
	}
	if p.NodePort != 0 {
		s += "+" + strconv.Itoa(int(p.NodePort))
	}
	return s
}

// describeEndpoint is address@node number, the zone, and what is not as usual.
func describeEndpoint(e Endpoint) string {
	s := e.Address.String() + "@" + strconv.Itoa(int(e.Node))
	if e.Zone != "" {
		s += "/" + escape(e.Zone)
	}
	switch {
	case e.Terminating && e.Serving:
		s += "(terminating,serving)"
	case e.Terminating:
		s += "(terminating)"
	case !e.Ready && e.Serving:
		s += "(not ready,serving)"
	case !e.Ready:
		s += "(not ready)"
	case !e.Serving:
		s += "(ready,not serving)"
	}
	if e.Terminating && e.Ready {
		s += "(ready)"
	}
	if name := e.Hostname.String(); name != "" {
		s += "(name " + escape(name) + ")"
	}
	return s + e.Hints.String()
}

// describeExternal is the address with its kind in brackets.
func describeExternal(e External) string {
	switch e.Kind {
	case ExternalIP:
		return e.Address.String() + "(external-ip)"
	case ExternalLoadBalancer:
		return e.Address.String() + "(load-balancer)"
	}
	return fmt.Sprintf("%v(kind %d)", e.Address, e.Kind)
}

// describeHostPort is TCP:80>8080, with the node's address where there is one.
func describeHostPort(p HostPort) string {
	s := fmt.Sprintf("%v:%d>%d", p.Protocol, p.Port, p.ContainerPort)
	if p.Address.IsValid() {
		s += "@" + p.Address.String()
	}
	return s
}

// Dump is the records of a view as text: one line each, the key below the
// cluster, two spaces, Describe; sorted. It is the golden file of tests, what
// the command line prints, and what a bug report holds.
func (v *View) Dump() string {
	var lines []string
	for r := range v.records() {
		lines = append(lines, DumpLine(KeyOf(v.scope, v.Name(), r), r))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// Dump is records as text, one DumpLine each, sorted.
func Dump(records map[Key]Record) string {
	lines := make([]string, 0, len(records))
	for k, r := range records {
		lines = append(lines, DumpLine(k, r))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// DumpLine is one record: its key below Root, two spaces, Describe, a newline.
func DumpLine(k Key, r Record) string {
	s := strings.TrimPrefix(k.String(), Root)
	if d := Describe(r); d != "" {
		s += "  " + d
	}
	return s + "\n"
}

// line is a line of words being put together.
type line struct{ b strings.Builder }

func (l *line) word(s string) {
	if l.b.Len() > 0 {
		l.b.WriteByte(' ')
	}
	l.b.WriteString(s)
}

func (l *line) field(name, value string) { l.word(name + "=" + value) }

func (l *line) text(name, value string) {
	if value != "" {
		l.field(name, escape(value))
	}
}

func (l *line) number(name string, n uint64) {
	if n != 0 {
		l.field(name, strconv.FormatUint(n, 10))
	}
}

func (l *line) duration(name string, d time.Duration) {
	if d != 0 {
		l.field(name, d.String())
	}
}

func (l *line) flag(name string, on bool) {
	if on {
		l.word(name)
	}
}

func (l *line) list(name string, items []string) {
	if len(items) > 0 {
		l.field(name, strings.Join(items, ","))
	}
}

func texts[T any](list []T, text func(T) string) []string {
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = text(t)
	}
	return out
}

func stringers[T fmt.Stringer](list []T) []string { return texts(list, T.String) }

// escape leaves ordinary words as they are and quotes everything else: what
// would break the line, fake another field, or speak to a terminal.
func escape(s string) string {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._/:%+@[]", c) >= 0:
		default:
			return strconv.QuoteToASCII(s)
		}
	}
	if s == "" {
		return `""`
	}
	return s
}

func escapePath(s string) string {
	if s == "" {
		return ""
	}
	return escape(s)
}
