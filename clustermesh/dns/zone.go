// Package dns is the zone clusterset.local of the Multi-Cluster Services API: what
// its names stand for, by the records that clusters export (Zone, pure), and a
// server of it.
//
//	<service>.<ns>.svc.clusterset.local                        A, AAAA, SRV
//	_<port>._<protocol>.<service>.<ns>.svc.clusterset.local    SRV
//	<hostname>.<cluster>.<service>.<ns>.svc.clusterset.local   A, AAAA; headless services alone
//	dns-version.clusterset.local                               TXT
package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// Name is the zone.
const Name = "clusterset.local."

const (
	ttl        = 5 // seconds: what names stand for changes as endpoints do
	ttlVersion = 28800
	// schema is the version of the standard's DNS schema.
	schema = "1.0.0"
)

// Source is what is known of the mesh; *apiserver.Exports is one.
type Source interface {
	// Known: the own cluster's records have been read.
	Known() bool
	// Of are the exports of a service, and the clusters nothing is known of yet.
	Of(clustermesh.ServiceName) (exports []mcs.Export, unknown []string)
	// Address is the own service whose frontends are the import's; nil = none.
	Address(clustermesh.ServiceName) *clustermesh.Service
	// Namespace: it exists in the own cluster.
	Namespace(string) bool
	// Names are all exported services.
	Names() []clustermesh.ServiceName
}

// Zone answers questions. Cluster is the own one.
type Zone struct {
	Source  Source
	Cluster string
}

// Answer is what a name and a type come to.
type Answer struct {
	Rcode  int // success, also where there is the name and no record of the type; name error; server failure
	Answer []dns.RR
	Extra  []dns.RR
}

// Answer looks name up, which is in the zone, in any spelling of its letters.
func (z Zone) Answer(name string, kind uint16) Answer {
	if !z.Source.Known() {
		return Answer{Rcode: dns.RcodeServerFailure}
	}
	rest := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(name), Name), ".")
	var labels []string
	if rest != "" {
		labels = strings.Split(rest, ".")
	}
	n := len(labels)
	switch {
	case n == 0:
		return apex(name, kind)
	case n == 1 && labels[0] == "dns-version":
		var a Answer
		if kind == dns.TypeTXT {
			a.Answer = []dns.RR{&dns.TXT{Hdr: header(name, dns.TypeTXT, ttlVersion), Txt: []string{schema}}}
		}
		return a
	case labels[n-1] != "svc" || n > 5:
		return Answer{Rcode: dns.RcodeNameError}
	case n == 1:
		return Answer{} // no record, but names below
	case n == 2:
		return z.namespace(labels[0])
	}
	s := z.service(clustermesh.ServiceName{Namespace: labels[n-2], Name: labels[n-3]})
	a, found := s.answer(name, labels[:n-3], kind)
	if found {
		return a
	}
	if len(s.unknown) > 0 {
		// Perhaps a cluster exports it that was not heard of yet: a name that is
		// denied is remembered, a failure is asked again.
		return Answer{Rcode: dns.RcodeServerFailure}
	}
	return Answer{Rcode: dns.RcodeNameError}
}

func apex(name string, kind uint16) Answer {
	switch kind {
	case dns.TypeSOA:
		return Answer{Answer: []dns.RR{soa()}}
	case dns.TypeNS:
		return Answer{Answer: []dns.RR{&dns.NS{Hdr: header(name, dns.TypeNS, ttl), Ns: "ns.dns." + Name}}}
	}
	return Answer{}
}

// soa also says how long a denial is remembered.
func soa() *dns.SOA {
	return &dns.SOA{
		Hdr: header(Name, dns.TypeSOA, ttl), Ns: "ns.dns." + Name, Mbox: "hostmaster." + Name,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

func header(name string, kind uint16, seconds uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: seconds}
}

// namespace has no record of its own; it is there if anything below it is.
func (z Zone) namespace(ns string) Answer {
	for _, name := range z.Source.Names() {
		if s := z.service(name); name.Namespace == ns && s.exists() {
			return Answer{}
		}
	}
	return Answer{Rcode: dns.RcodeNameError}
}

// service is an import as DNS shows it.
type service struct {
	name    clustermesh.ServiceName
	ips     []netip.Addr // of a ClusterSetIP
	ports   []clustermesh.Port
	pods    []pod // of a headless one: the ready ones
	unknown []string
}

type pod struct {
	host, cluster string
	addr          netip.Addr
	of            *clustermesh.Service // as the cluster exports it
}

func (z Zone) service(name clustermesh.ServiceName) service {
	s := service{name: name}
	exports, unknown := z.Source.Of(name)
	s.unknown = unknown
	if derived := z.Source.Address(name); derived != nil {
		s.ips, s.ports = derived.Frontends, derived.Ports
		return s
	}
	im, ok := mcs.Resolve(name, exports)
	if !ok || !im.Headless || !z.Source.Namespace(name.Namespace) && !slices.Contains(im.Clusters, z.Cluster) {
		return s
	}
	for _, p := range im.Ports {
		s.ports = append(s.ports, clustermesh.Port{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	seen := map[pod]bool{}
	for _, e := range exports {
		if !slices.Contains(im.Clusters, e.Cluster) {
			continue
		}
		for _, slice := range e.Slices {
			for _, ep := range slice.Endpoints {
				p := pod{host: hostname(ep), cluster: e.Cluster, addr: ep.Address, of: e.Service}
				if mcs.Ready(e.Service, ep) && !seen[p] {
					seen[p] = true
					s.pods = append(s.pods, p)
				}
			}
		}
	}
	slices.SortFunc(s.pods, func(a, b pod) int { return a.addr.Compare(b.addr) })
	return s
}

// hostname is the endpoint's own, or its address as one label.
func hostname(e clustermesh.Endpoint) string {
	if name := e.Hostname.String(); name != "" {
		return strings.ToLower(name)
	}
	text := strings.NewReplacer(".", "-", ":", "-").Replace(e.Address.StringExpanded())
	if e.Address.Is4() {
		text = strings.ReplaceAll(e.Address.String(), ".", "-")
	} else if short := strings.ReplaceAll(e.Address.String(), ":", "-"); !strings.HasPrefix(short, "-") && !strings.HasSuffix(short, "-") {
		text = short // as others spell it, where that is a label
	}
	return text
}

func (s *service) exists() bool { return len(s.ips)+len(s.pods) > 0 }

// domain is the service's name in the zone.
func (s *service) domain() string { return s.name.Name + "." + s.name.Namespace + ".svc." + Name }

func (p pod) domain(s *service) string { return p.host + "." + p.cluster + "." + s.domain() }

// answer looks at the labels before the service's name; found = there is such a name.
func (s *service) answer(name string, before []string, kind uint16) (a Answer, found bool) {
	if !s.exists() {
		return a, false
	}
	switch {
	case len(before) == 0:
		if kind == dns.TypeSRV {
			a = s.srv(name, func(clustermesh.Port) bool { return true })
		}
		for _, ip := range s.ips {
			a.Answer = appendAddress(a.Answer, name, ip, kind)
		}
		for _, p := range s.pods {
			a.Answer = appendAddress(a.Answer, name, p.addr, kind)
		}
		return a, true
	case strings.HasPrefix(before[len(before)-1], "_"):
		return s.ofPort(name, before, kind)
	}
	for _, p := range s.pods {
		if p.cluster != before[len(before)-1] {
			continue
		}
		if len(before) == 1 { // a name between others: the standard denies records of one cluster
			return a, true
		}
		if p.host == before[0] {
			found = true
			a.Answer = appendAddress(a.Answer, name, p.addr, kind)
		}
	}
	return a, found
}

// ofPort is _tcp or _http._tcp. A port without a name has no such name.
func (s *service) ofPort(name string, before []string, kind uint16) (a Answer, found bool) {
	wanted := func(p clustermesh.Port) bool {
		return p.Name != "" && before[len(before)-1] == "_"+strings.ToLower(p.Protocol.String()) && (len(before) == 1 || before[0] == "_"+p.Name)
	}
	if !slices.ContainsFunc(s.ports, wanted) {
		return a, false
	}
	if len(before) == 2 && kind == dns.TypeSRV {
		a = s.srv(name, wanted)
	}
	return a, true
}

// srv names each pair of target and port once, with the addresses beside. A pod has
// the ports that its cluster exposes.
func (s *service) srv(name string, wanted func(clustermesh.Port) bool) (a Answer) {
	type pair struct {
		target string
		port   uint16
	}
	seen, extra := map[pair]bool{}, map[string]bool{}
	add := func(target string, of *clustermesh.Service, addrs ...netip.Addr) {
		named := false
		for _, p := range s.ports {
			if !wanted(p) || of != nil && !of.Exposes(p.Name, p.Protocol, p.Port) {
				continue
			}
			named = true
			if at := (pair{target, p.Port}); !seen[at] {
				seen[at] = true
				a.Answer = append(a.Answer, &dns.SRV{Hdr: header(name, dns.TypeSRV, ttl), Priority: 0, Weight: 100, Port: p.Port, Target: target})
			}
		}
		for _, addr := range addrs {
			if key := target + addr.String(); named && !extra[key] {
				extra[key] = true
				a.Extra = appendAddress(a.Extra, target, addr, dns.TypeA)
				a.Extra = appendAddress(a.Extra, target, addr, dns.TypeAAAA)
			}
		}
	}
	if len(s.ips) > 0 {
		add(s.domain(), nil, s.ips...)
	}
	for _, p := range s.pods {
		add(p.domain(s), p.of, p.addr)
	}
	return a
}

// appendAddress appends the record of an address if it is of the type asked for.
func appendAddress(list []dns.RR, name string, addr netip.Addr, kind uint16) []dns.RR {
	switch {
	case kind == dns.TypeA && addr.Is4():
		return append(list, &dns.A{Hdr: header(name, kind, ttl), A: addr.AsSlice()})
	case kind == dns.TypeAAAA && addr.Is6():
		return append(list, &dns.AAAA{Hdr: header(name, kind, ttl), AAAA: addr.AsSlice()})
	}
	return list
}
