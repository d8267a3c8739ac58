package mcs

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func resolve(t *testing.T, exports ...Export) Import {
	t.Helper()
	im, ok := Resolve(hello, exports)
	if !ok {
		t.Fatal("nothing is imported")
	}
	return im
}

// Conflict resolution policy: precedence by the ServiceExport's creationTimestamp,
// from oldest to newest; a conflict is said of all.
func TestConflictResolutionOldestWins(t *testing.T) {
	label := func(v string) func(*clustermesh.Export) {
		return func(e *clustermesh.Export) { e.Labels = []clustermesh.Label{{Key: "tier", Value: v}} }
	}
	tests := []struct {
		name   string
		change func(*clustermesh.Service) // of the younger one
		reason string
		says   string // words of the message
	}{
		{"Headlessness", headless, "TypeConflict", `Using "ClusterSetIP" from the oldest export, in cluster "b". 1 of 2 clusters disagree.`},
		{"Session affinity", func(s *clustermesh.Service) { s.SessionAffinity = 0 }, "SessionAffinityConflict", `Using "ClientIP"`},
		{"Session affinity's timeout", func(s *clustermesh.Service) { s.SessionAffinity = time.Minute }, "SessionAffinityConfigConflict", `Using "10s"`},
		{"Internal traffic policy", func(s *clustermesh.Service) { s.InternalLocal = true }, "InternalTrafficPolicyConflict", `Using "Cluster"`},
		{"Traffic distribution", exported(func(e *clustermesh.Export) { e.TrafficDistribution = "PreferClose" }), "TrafficDistributionConflict", `Using ""`},
		{"Labels", exported(label("front")), "LabelsConflict", `Using ""`},
		{"Annotations", exported(func(e *clustermesh.Export) { e.Annotations = []clustermesh.Label{{Key: "a", Value: "b"}} }), "AnnotationsConflict", `Using ""`},
		{"No common address family", exported(func(e *clustermesh.Export) { e.IPv4, e.IPv6 = false, true }), "IPFamilyConflict", `Using "IPv4"`},
		{"One common address family", exported(func(e *clustermesh.Export) { e.IPv6 = true }), "", ""},
		{"Port number", ports(clustermesh.Port{Name: "tcp", Protocol: clustermesh.TCP, Port: 43}), "PortConflict", `tcp:TCP:42 is used, and not tcp:TCP:43 of cluster "a"`},
		{"Port name", ports(clustermesh.Port{Name: "web", Protocol: clustermesh.TCP, Port: 42}), "PortConflict", `tcp:TCP:42 is used, and not web:TCP:42`},
		{"Port protocol", ports(clustermesh.Port{Name: "tcp", Protocol: clustermesh.SCTP, Port: 42}), "PortConflict", `and not tcp:SCTP:42`},
		{"App protocol", func(s *clustermesh.Service) { s.Export.AppProtocols = []string{"http", ""} }, "PortConflict", `and not tcp:TCP:42 (http)`},
		{"Several at once", func(s *clustermesh.Service) { headless(s); label("x")(s.Export) }, "TypeConflict,LabelsConflict", ""},
		{"Nothing", nil, "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			old, young := export("b", 0, nil), export("a", 1, test.change)
			im := resolve(t, young, old)
			if im.reasons() != test.reason || im.Oldest != "b" {
				t.Errorf("conflicts %q, oldest %s, want %q", im.reasons(), im.Oldest, test.reason)
			}
			for _, c := range im.Conflicts {
				if test.says != "" && !strings.Contains(c.Message, test.says) {
					t.Errorf("%s: %s\nwant the words: %s", c.Reason, c.Message, test.says)
				}
			}
			alone := resolve(t, old)
			if test.reason != "" {
				im.Clusters, im.Conflicts = alone.Clusters, nil
				if !reflect.DeepEqual(im, alone) {
					t.Errorf("the younger one has changed it:\n%+v\nwant\n%+v", im, alone)
				}
			}
			// The other one is older: it wins, and both know.
			if test.reason != "" {
				old.Service.Export.Created, young.Service.Export.Created = young.Service.Export.Created, old.Service.Export.Created
				if turned := resolve(t, young, old); turned.Oldest != "a" || len(turned.Conflicts) == 0 {
					t.Errorf("turned round: %+v", turned)
				}
			}
		})
	}
}

// Service port: the union of the ports of the constituent services, and a conflict
// if they are not the same in all.
func TestServicePortUnion(t *testing.T) {
	tcp, udp := clustermesh.Port{Name: "tcp", Protocol: clustermesh.TCP, Port: 42}, clustermesh.Port{Name: "udp", Protocol: clustermesh.UDP, Port: 42}
	sctp := clustermesh.Port{Name: "sctp", Protocol: clustermesh.SCTP, Port: 142}
	tests := []struct {
		second, third []clustermesh.Port
		want, reason  string
		says          string // the message from here on
	}{
		{[]clustermesh.Port{tcp, udp}, []clustermesh.Port{udp, tcp}, "[tcp:TCP:42 udp:UDP:42]", "", ""},
		{[]clustermesh.Port{tcp, udp, sctp}, []clustermesh.Port{tcp, udp}, "[tcp:TCP:42 udp:UDP:42 sctp:SCTP:142]", "PortConflict",
			`1 of 3 clusters disagree: sctp:SCTP:142 is not in cluster "a"; sctp:SCTP:142 is not in cluster "c".`},
		{[]clustermesh.Port{tcp}, []clustermesh.Port{tcp, sctp}, "[tcp:TCP:42 udp:UDP:42 sctp:SCTP:142]", "PortConflict",
			`2 of 3 clusters disagree: sctp:SCTP:142 is not in cluster "a"; udp:UDP:42 is not in cluster "b"; sctp:SCTP:142 is not in cluster "b"; ….`},
		{[]clustermesh.Port{{Name: "tcp", Protocol: clustermesh.TCP, Port: 43}, udp}, []clustermesh.Port{tcp, udp}, "[tcp:TCP:42 udp:UDP:42]", "PortConflict",
			`1 of 3 clusters disagree: tcp:TCP:42 is used, and not tcp:TCP:43 of cluster "b".`},
	}
	for _, test := range tests {
		im := resolve(t, export("a", 0, nil), export("b", 1, ports(test.second...)), export("c", 2, ports(test.third...)))
		if got := fmt.Sprint(im.Ports); got != test.want || im.reasons() != test.reason {
			t.Errorf("%s, conflicts %q, want %s, %q", got, im.reasons(), test.want, test.reason)
		}
		if len(im.Conflicts) > 0 && !strings.HasSuffix(im.Conflicts[0].Message, test.says) {
			t.Errorf("%s\nwant the end: %s", im.Conflicts[0].Message, test.says)
		}
	}
}

// Service port: no duplicated names, the empty one included; no two ports of one
// protocol and number. Merged by name first.
func TestServicePortRules(t *testing.T) {
	im := resolve(t,
		export("a", 0, ports(clustermesh.Port{Protocol: clustermesh.TCP, Port: 80})),
		export("b", 1, ports(clustermesh.Port{Protocol: clustermesh.TCP, Port: 81})), // the empty name again
		export("c", 2, ports(clustermesh.Port{Name: "web", Protocol: clustermesh.TCP, Port: 80}, clustermesh.Port{Name: "dns", Protocol: clustermesh.UDP, Port: 80})))
	if got := fmt.Sprint(im.Ports); got != "[TCP:80 dns:UDP:80]" || im.reasons() != "PortConflict" {
		t.Errorf("%s, conflicts %q", got, im.reasons())
	}
	if m := im.Conflicts[0].Message; !strings.Contains(m, "2 of 3 clusters disagree") {
		t.Error(m)
	}
}

// Session affinity and the rest mean nothing to a headless import: no conflict.
func TestHeadlessHasNoConflictOfAddresses(t *testing.T) {
	im := resolve(t, export("a", 0, headless), export("b", 1, func(s *clustermesh.Service) { headless(s); s.InternalLocal, s.SessionAffinity = true, time.Hour }))
	if !im.Headless || im.reasons() != "" {
		t.Errorf("%+v", im)
	}
}

// What a peer says cannot break what others export.
func TestExportsThatNoAPIServerTakesAreLeftOut(t *testing.T) {
	for name, change := range map[string]func(*clustermesh.Service){
		"port name":            ports(clustermesh.Port{Name: "Not A Name", Protocol: clustermesh.TCP, Port: 1}),
		"port twice":           ports(clustermesh.Port{Name: "a", Protocol: clustermesh.TCP, Port: 1}, clustermesh.Port{Name: "a", Protocol: clustermesh.TCP, Port: 2}),
		"number twice":         ports(clustermesh.Port{Name: "a", Protocol: clustermesh.TCP, Port: 1}, clustermesh.Port{Name: "b", Protocol: clustermesh.TCP, Port: 1}),
		"no port":              ports(),
		"app protocol":         func(s *clustermesh.Service) { s.Export.AppProtocols = []string{"no such thing!"} },
		"traffic distribution": exported(func(e *clustermesh.Export) { e.TrafficDistribution = "Anywhere" }),
		"family":               exported(func(e *clustermesh.Export) { e.IPv4 = false }),
		"label":                exported(func(e *clustermesh.Export) { e.Labels = []clustermesh.Label{{Key: "a b", Value: ""}} }),
		"label value":          exported(func(e *clustermesh.Export) { e.Labels = []clustermesh.Label{{Key: "a", Value: "b c"}} }),
		"annotation":           exported(func(e *clustermesh.Export) { e.Annotations = []clustermesh.Label{{Key: "/", Value: ""}} }),
		"size": exported(func(e *clustermesh.Export) {
			e.Annotations = []clustermesh.Label{{Key: "a", Value: strings.Repeat("x", MaxText)}}
		}),
		"no export": func(s *clustermesh.Service) { s.Export = nil },
	} {
		bad := export("a", 0, change)
		if _, ok := Resolve(hello, []Export{bad}); ok {
			t.Errorf("%s: taken", name)
		}
		if im := resolve(t, bad, export("b", 1, nil)); im.Oldest != "b" || im.reasons() != "" || len(im.Clusters) != 1 {
			t.Errorf("%s: %+v", name, im)
		}
	}
}

// Every cluster comes to the same, whatever the order in which it heard of them.
func TestResolveDoesNotDependOnOrder(t *testing.T) {
	var all []Export
	for i := range 8 {
		all = append(all, export(string(rune('a'+i)), i/3, func(s *clustermesh.Service) {
			s.Headless, s.InternalLocal = i%5 == 4, i%2 == 0
			s.Ports = append(s.Ports, clustermesh.Port{Name: fmt.Sprintf("p%d", i%4), Protocol: clustermesh.TCP, Port: uint16(50 + i%3)})
			s.Export.IPv6 = i%3 == 0
		}))
	}
	want := resolve(t, all...)
	if want.Oldest != "a" { // of the three oldest the first by name
		t.Errorf("oldest: %s", want.Oldest)
	}
	for range 50 {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if got := resolve(t, all...); !reflect.DeepEqual(got, want) {
			t.Fatalf("got\n%+v\nwant\n%+v", got, want)
		}
	}
}
