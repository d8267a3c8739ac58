package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// world is a Source of what a test says.
type world struct {
	unread     bool
	exports    []mcs.Export
	unknown    []string
	addresses  map[string]*clustermesh.Service // by the imported service's name
	namespaces []string
}

func (w *world) Known() bool { return !w.unread }
func (w *world) Of(n clustermesh.ServiceName) (out []mcs.Export, unknown []string) {
	for _, e := range w.exports {
		if e.Service.Name == n {
			out = append(out, e)
		}
	}
	return out, w.unknown
}
func (w *world) Address(n clustermesh.ServiceName) *clustermesh.Service { return w.addresses[n.Name] }
func (w *world) Namespace(ns string) bool                               { return slices.Contains(w.namespaces, ns) }
func (w *world) Names() (out []clustermesh.ServiceName) {
	for _, e := range w.exports {
		out = append(out, e.Service.Name)
	}
	return out
}

var ports = []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 80}, {Name: "dns", Protocol: clustermesh.UDP, Port: 80}, {Name: "", Protocol: clustermesh.TCP, Port: 81}}

// exported is a cluster's export; a ~ after an address: not ready.
func exported(cluster, name string, headless bool, endpoints ...string) mcs.Export {
	n := clustermesh.ServiceName{Namespace: "ns", Name: name}
	e := mcs.Export{Cluster: cluster, Service: &clustermesh.Service{Name: n, Ports: ports, Headless: headless, Export: &clustermesh.Export{Created: 1, IPv4: true, IPv6: true}}}
	s := &clustermesh.EndpointSlice{Name: clustermesh.SliceName{Service: n, Slice: "x"}, Ports: ports}
	for _, text := range endpoints {
		text, host, _ := strings.Cut(text, "=")
		text, unready := strings.CutSuffix(text, "~")
		s.Endpoints = append(s.Endpoints, clustermesh.Endpoint{Address: netip.MustParseAddr(text), Ready: !unready, Hostname: clustermesh.MakeHostname(host)})
	}
	e.Slices = []*clustermesh.EndpointSlice{s}
	return e
}

func theWorld() *world {
	mixed := exported("b", "mixed", true, "10.2.0.8=m") // a younger export, with another number under one name
	mixed.Service.Export.Created = 2
	mixed.Service.Ports = []clustermesh.Port{{Name: "http", Protocol: clustermesh.TCP, Port: 82}, {Name: "dns", Protocol: clustermesh.UDP, Port: 80}}
	return &world{
		exports: []mcs.Export{
			exported("a", "web", false), exported("b", "web", false),
			exported("a", "db", true, "10.1.0.5=db-0", "10.1.0.6", "10.1.0.7~=db-2", "fd00:1::5=db-0"), exported("b", "db", true, "10.2.0.5=db-0"),
			exported("b", "idle", true, "10.2.0.9~"), exported("b", "unaddressed", false),
			exported("a", "mixed", true, "10.1.0.8=m"), mixed,
		},
		addresses: map[string]*clustermesh.Service{"web": {
			Name: clustermesh.ServiceName{Namespace: "ns", Name: "derived-1"}, Ports: ports, Import: "web",
			Frontends: []netip.Addr{netip.MustParseAddr("10.129.0.9")},
		}},
		namespaces: []string{"ns"},
	}
}

// text is an answer in a line: the code, then the records without their names.
func text(a Answer) string {
	out := []string{}
	for _, rr := range a.Answer {
		f := strings.Fields(rr.String())
		out = append(out, strings.Join(f[4:], " "))
	}
	slices.Sort(out)
	return strings.TrimSpace(dns.RcodeToString[a.Rcode] + " " + strings.Join(out, ", "))
}

func TestZone(t *testing.T) {
	const web, db = "web.ns.svc.clusterset.local.", "db.ns.svc.clusterset.local."
	tests := []struct {
		rule, name string
		kind       uint16
		want       string
	}{
		{"2.2 schema version", "dns-version.clusterset.local.", dns.TypeTXT, `NOERROR "1.0.0"`},
		{"2.2 no other type", "dns-version.clusterset.local.", dns.TypeA, "NOERROR"},
		{"2.3.1 ClusterSetIP", web, dns.TypeA, "NOERROR 10.129.0.9"},
		{"2.3.1 in any spelling", "WeB.nS.sVc.CLUSTERSET.local.", dns.TypeA, "NOERROR 10.129.0.9"},
		{"2.3.1 no address of that family", web, dns.TypeAAAA, "NOERROR"},
		{"2.3.2 SRV of a port", "_http._tcp." + web, dns.TypeSRV, "NOERROR 0 100 80 " + web},
		{"2.3.2 SRV has no address itself", "_http._tcp." + web, dns.TypeA, "NOERROR"},
		{"2.3.2 another protocol", "_http._udp." + web, dns.TypeSRV, "NXDOMAIN"},
		{"2.3.2 SRV of the service: each port number once", web, dns.TypeSRV, "NOERROR 0 100 80 " + web + ", 0 100 81 " + web},
		{"2.3.2 unnamed ports have none", "_._tcp." + web, dns.TypeSRV, "NXDOMAIN"},
		{"a name between others", "_tcp." + web, dns.TypeSRV, "NOERROR"},
		{"2.3.4 not of one cluster", "a." + web, dns.TypeA, "NXDOMAIN"},
		{"2.4.1 all ready endpoints", db, dns.TypeA, "NOERROR 10.1.0.5, 10.1.0.6, 10.2.0.5"},
		{"2.4.1 of either family", db, dns.TypeAAAA, "NOERROR fd00:1::5"},
		{"2.4.1 by hostname and cluster", "db-0.a." + db, dns.TypeA, "NOERROR 10.1.0.5"},
		{"2.4.1 the same hostname elsewhere", "db-0.b." + db, dns.TypeA, "NOERROR 10.2.0.5"},
		{"2.4.1 hostname, AAAA", "db-0.a." + db, dns.TypeAAAA, "NOERROR fd00:1::5"},
		{"2.4.1 hostname, no AAAA there", "db-0.b." + db, dns.TypeAAAA, "NOERROR"},
		{"2.4.1 a system-assigned identifier", "10-1-0-6.a." + db, dns.TypeA, "NOERROR 10.1.0.6"},
		{"2.4.1 not ready", "db-2.a." + db, dns.TypeA, "NXDOMAIN"},
		{"2.4.1 no ready endpoint", "idle.ns.svc.clusterset.local.", dns.TypeA, "NXDOMAIN"},
		{"2.4.2 SRV: endpoints times ports", "_http._tcp." + db, dns.TypeSRV,
			"NOERROR 0 100 80 10-1-0-6.a." + db + ", 0 100 80 db-0.a." + db + ", 0 100 80 db-0.b." + db},
		{"2.4.2 SRV: of the clusters that expose the port", "_http._tcp.mixed.ns.svc.clusterset.local.", dns.TypeSRV, "NOERROR 0 100 80 m.a.mixed.ns.svc.clusterset.local."},
		{"2.4.2 SRV: the others' addresses stay", "mixed.ns.svc.clusterset.local.", dns.TypeA, "NOERROR 10.1.0.8, 10.2.0.8"},
		{"2.4.4 not all of one cluster", "a." + db, dns.TypeA, "NOERROR"},
		{"no such cluster", "c." + db, dns.TypeA, "NXDOMAIN"},
		{"imported, no address yet", "unaddressed.ns.svc.clusterset.local.", dns.TypeA, "NXDOMAIN"},
		{"not exported", "x.ns.svc.clusterset.local.", dns.TypeA, "NXDOMAIN"},
		{"a namespace", "ns.svc.clusterset.local.", dns.TypeA, "NOERROR"},
		{"no such namespace", "other.svc.clusterset.local.", dns.TypeA, "NXDOMAIN"},
		{"svc", "svc.clusterset.local.", dns.TypeA, "NOERROR"},
		{"not svc", "pod.clusterset.local.", dns.TypeA, "NXDOMAIN"},
		{"too long", "x.y.z." + db, dns.TypeA, "NXDOMAIN"},
		{"the zone", "clusterset.local.", dns.TypeA, "NOERROR"},
	}
	z := Zone{Source: theWorld(), Cluster: "a"}
	for _, test := range tests {
		if got := text(z.Answer(test.name, test.kind)); got != test.want {
			t.Errorf("%s: %s %s\n got %s\nwant %s", test.rule, test.name, dns.TypeToString[test.kind], got, test.want)
		}
	}
}

// TestZoneDoesNotDenyWhatItCannotKnow: what a silent cluster may export.
func TestZoneDoesNotDenyWhatItCannotKnow(t *testing.T) {
	w := theWorld()
	w.unknown = []string{"c"}
	z := Zone{Source: w, Cluster: "a"}
	for name, want := range map[string]string{
		"web.ns.svc.clusterset.local.": "NOERROR 10.129.0.9", "x.ns.svc.clusterset.local.": "SERVFAIL", "pod.clusterset.local.": "NXDOMAIN",
	} {
		if got := text(z.Answer(name, dns.TypeA)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	w.unread = true
	if got := text(z.Answer("web.ns.svc.clusterset.local.", dns.TypeA)); got != "SERVFAIL" {
		t.Errorf("before anything was read: %s", got)
	}
}

// TestZoneOnlyWhereTheNamespaceIs: a headless service is imported there alone.
func TestZoneOnlyWhereTheNamespaceIs(t *testing.T) {
	w := theWorld()
	w.namespaces = nil
	for cluster, want := range map[string]string{"a": "NOERROR 10.1.0.5, 10.1.0.6, 10.2.0.5", "c": "NXDOMAIN"} { // a exports it, so it is there
		if got := text(Zone{Source: w, Cluster: cluster}.Answer("db.ns.svc.clusterset.local.", dns.TypeA)); got != want {
			t.Errorf("in %s: %s, want %s", cluster, got, want)
		}
	}
}

// TestServer: over UDP and TCP, with and without EDNS0.
func TestServer(t *testing.T) {
	w := theWorld()
	var many []string
	for i := range 200 {
		many = append(many, netip.AddrFrom4([4]byte{10, 3, byte(i), 1}).String())
	}
	w.exports = append(w.exports, exported("b", "many", true, many[:100]...), exported("c", "many", true, many[100:]...))
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		udp.Close()
		t.Skip("the port is taken for TCP: " + err.Error())
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- serve(ctx, udp, tcp, Zone{Source: w, Cluster: "a"}, slog.New(slog.DiscardHandler)) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	ask := func(network, name string, kind uint16, change func(*dns.Msg)) *dns.Msg {
		t.Helper()
		q := new(dns.Msg).SetQuestion(name, kind)
		if change != nil {
			change(q)
		}
		c := dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: dns.MaxMsgSize}
		r, _, err := c.Exchange(q, udp.LocalAddr().String())
		if err != nil {
			t.Fatal(network, name, err)
		}
		return r
	}
	edns := func(size uint16) func(*dns.Msg) { return func(q *dns.Msg) { q.SetEdns0(size, false) } }
	const web, all = "web.ns.svc.clusterset.local.", "many.ns.svc.clusterset.local."
	if r := ask("udp", web, dns.TypeA, nil); !r.Authoritative || len(r.Answer) != 1 || r.Answer[0].Header().Ttl != 5 || r.Truncated {
		t.Errorf("%v", r)
	}
	if r := ask("udp", web, dns.TypeAAAA, nil); r.Rcode != dns.RcodeSuccess || len(r.Ns) != 1 || r.Ns[0].(*dns.SOA).Minttl != 5 {
		t.Errorf("no data: %v", r)
	}
	if r := ask("udp", "x."+Name, dns.TypeA, nil); r.Rcode != dns.RcodeNameError || len(r.Ns) != 1 {
		t.Errorf("no name: %v", r)
	}
	if r := ask("udp", "_http._tcp."+web, dns.TypeSRV, nil); len(r.Answer) != 1 || len(r.Extra) != 1 {
		t.Errorf("SRV with the address beside: %v", r)
	}
	for _, size := range []struct {
		change func(*dns.Msg)
		most   int
	}{{nil, 512}, {edns(800), 800}, {edns(4096), maxUDP}} {
		r := ask("udp", all, dns.TypeA, size.change)
		r.Compress = true
		if packed, err := r.Pack(); err != nil || !r.Truncated || len(packed) > size.most || len(r.Answer) == 0 {
			t.Errorf("up to %d bytes: %d, truncated %v, %v", size.most, len(packed), r.Truncated, err)
		}
		if (size.change != nil) != (r.IsEdns0() != nil) {
			t.Error("EDNS0 is answered where it is spoken, and there alone")
		}
	}
	if r := ask("tcp", all, dns.TypeA, nil); r.Truncated || len(r.Answer) != 200 {
		t.Errorf("by TCP: %d, truncated %v", len(r.Answer), r.Truncated)
	}
	for what, ask := range map[string]*dns.Msg{
		"another zone":    ask("udp", "example.com.", dns.TypeA, nil),
		"a zone transfer": ask("udp", Name, dns.TypeAXFR, nil),
		"another class":   ask("udp", web, dns.TypeA, func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }),
	} {
		if ask.Rcode != dns.RcodeRefused {
			t.Errorf("%s: %v", what, ask)
		}
	}
	if r := ask("udp", web, dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }); r.Rcode != dns.RcodeBadVers {
		t.Errorf("a newer EDNS: %v", r)
	}
	if r := ask("udp", web, dns.TypeA, func(q *dns.Msg) { q.Opcode = dns.OpcodeStatus }); r.Rcode != dns.RcodeNotImplemented {
		t.Errorf("another kind of message: %v", r)
	}
}
