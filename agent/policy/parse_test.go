package policy

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func parseYAML(t *testing.T, n Name, text string) parsed {
	t.Helper()
	json, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return parse(n, json, scope{})
}

// What is refused, and why. Each names the place.
func TestRefusedNetworkPolicies(t *testing.T) {
	for _, c := range []struct{ spec, why string }{
		{`{podSelector: {matchLabels: {app: 1}}}`, `spec.podSelector.matchLabels holds a number where a string belongs`},
		{`{podSelector: [], ingress: []}`, `spec.podSelector holds a array`},
		{`{podSelector: {matchExpressions: [{key: a, operator: In}]}}`, `operator In of label "a" has 0 values`},
		{`{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [x]}]}}`, `operator Exists of label "a" has 1 values`},
		{`{podSelector: {matchLabels: {"namespace:team": red}}}`, `"namespace:team" is no label key`},
		{`{podSelector: {matchLabels: {pod-template-hash: x}}}`, `differs from rollout to rollout`},
		{`{podSelector: {matchLabels: {tombolo.io/other: x}}}`, `of tombolo.io/ only cluster, namespace and serviceaccount`},
		{`{podSelector: {}, policyTypes: [Both]}`, `policyTypes: "Both" is neither`},
		{`{podSelector: {}, ingress: {}}`, `spec.ingress holds a object`},
		{`{podSelector: {}, ingress: [{from: [{}]}]}`, `ingress[0]: peer 0: neither selector nor ipBlock`},
		{`{podSelector: {}, ingress: [{}, {from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}`, `ingress[1]: peer 0: ipBlock together with a selector`},
		{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}`, `"10.0.0.0" is no CIDR`},
		{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "::ffff:10.0.0.0/104"}}]}]}`, `is IPv4 written as IPv6`},
		{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}`, `except: 11.0.0.0/16 does not lie within 10.0.0.0/8`},
		{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}`, `does not lie within`},
		{`{podSelector: {}, egress: [{ports: [{port: 0}]}]}`, `egress[0]: ports[0]: port 0-0: ports are 1 to 65535`},
		{`{podSelector: {}, egress: [{ports: [{port: 65536}]}]}`, `ports are 1 to 65535`},
		{`{podSelector: {}, egress: [{ports: [{port: 10, endPort: 9}]}]}`, `the range ends at 9, before port 10`},
		{`{podSelector: {}, egress: [{ports: [{endPort: 9}]}]}`, `endPort without port`},
		{`{podSelector: {}, egress: [{ports: [{port: http, endPort: 9}]}]}`, `endPort with the named port "http"`},
		{`{podSelector: {}, egress: [{ports: [{port: ""}]}]}`, `a port with an empty name`},
		{`{podSelector: {}, egress: [{ports: [{protocol: ICMP}]}]}`, `protocol "ICMP" is not TCP, UDP or SCTP`},
		{`{podSelector: {}, egress: [{ports: [{port: 1.5}]}]}`, `port 1.5 is neither a number nor a name`},
	} {
		p := parseYAML(t, Name{"ns", "p"}, "spec: "+c.spec)
		if p.err == nil || !strings.Contains(p.err.Error(), c.why) {
			t.Errorf("%s\n got %v\nwant %s", c.spec, p.err, c.why)
		}
		if p.policy != nil && (len(p.policy.rules[0])+len(p.policy.rules[1]) > 0 || !p.policy.isolates[0] && !p.policy.isolates[1]) {
			t.Errorf("%s: in its place something is allowed", c.spec)
		}
	}
	if p := parse(Name{"ns", "p"}, []byte(`{`), scope{}); p.err == nil || p.policy != nil {
		t.Errorf("half an object: %+v", p)
	}
}

func TestRefusedClusterNetworkPolicies(t *testing.T) {
	const head = `tier: Admin, priority: 1, subject: {namespaces: {}}, `
	for _, c := range []struct {
		spec, why string
		rules     string // what holds in their place: verdict and peers of each
	}{
		{`{tier: Admin, priority: 1}`, `neither namespaces nor pods`, ""},
		{`{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {}}}`, `both namespaces and pods`, ""},
		{`{tier: Gold, priority: 1, subject: {namespaces: {}}}`, `tier "Gold"`, "deny anybody; deny anybody"},
		{`{tier: Admin, priority: 1001, subject: {namespaces: {}}}`, `priority 1001`, "deny anybody; deny anybody"},
		{`{tier: Admin, subject: {namespaces: {}}}`, `priority -1: it must be there`, "deny anybody; deny anybody"},
		{`{` + head + `ingress: [{action: Allow, from: [{namespaces: {}}]}]}`, `action "Allow" is not`, "deny anybody; deny anybody"},
		{`{` + head + `ingress: [{action: Accept, from: []}]}`, `from is empty`, "accept nobody"},
		{`{` + head + `ingress: [{action: Pass, from: [{networks: [10.0.0.0/8]}]}]}`, `this one has 0`, "deny anybody"},
		{`{` + head + `egress: [{action: Deny, to: [{networks: [10.0.0.0]}]}, {action: Accept, to: [{namespaces: {}}]}]}`, `"10.0.0.0" is no CIDR`, "deny anybody; accept pods(own cluster)"},
		{`{` + head + `egress: [{action: Accept, to: [{namespaces: {}, networks: [10.0.0.0/8]}]}]}`, `this one has 2`, "accept nobody"},
		{`{` + head + `egress: [{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {}}]}]}`, `tcp without destinationPort`, "accept nobody"},
		{`{` + head + `egress: [{action: Accept, to: [{namespaces: {}}], protocols: [{icmp: {}}]}]}`, `one of tcp, udp, sctp`, "accept nobody"},
		{`{` + head + `egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 5, end: 4}}}}]}]}`, `the range ends at 4`, "deny anybody"},
		{`{` + head + `egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 3, range: {start: 5, end: 6}}}}]}]}`, `both number and range`, "deny anybody"},
	} {
		p := parseYAML(t, Name{"", "p"}, "spec: "+c.spec)
		if p.err == nil || !strings.Contains(p.err.Error(), c.why) {
			t.Errorf("%s\n got %v\nwant %s", c.spec, p.err, c.why)
		}
		var rules []string
		if p.policy != nil {
			for _, list := range p.policy.rules {
				for _, r := range list {
					rules = append(rules, r.verdict.String()+" "+r.peersText())
				}
			}
		}
		if got := strings.Join(rules, "; "); got != c.rules {
			t.Errorf("%s: in its place %q, want %q", c.spec, got, c.rules)
		}
	}
}

// Absent and empty mean what Kubernetes says.
func TestAbsentAndEmpty(t *testing.T) {
	for _, c := range []struct{ spec, want string }{
		{`{}`, "ns in: no rules"},
		{`{podSelector: {}, ingress: []}`, "ns in: no rules"},
		{`{podSelector: {}, ingress: null, egress: []}`, "ns in: no rules"},
		{`{podSelector: {}, ingress: [{}]}`, "ns in: anybody on everything"},
		{`{podSelector: {}, ingress: [{from: [], ports: []}]}`, "ns in: anybody on everything"},
		{`{podSelector: {}, egress: [{}]}`, "ns in: no rules out: anybody on everything"},
		{`{podSelector: {}, policyTypes: [Egress], ingress: [{}]}`, "ns out: no rules"},
		{`{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, "ns in: pods(own cluster, in ns) on everything"},
		{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`, "ns in: pods(own cluster) on everything"},
		{`{podSelector: {}, ingress: [{from: [{namespaceSelector: null, podSelector: {}}]}]}`, "ns in: pods(own cluster, in ns) on everything"},
		{`{podSelector: {}, ingress: [{ports: [{}]}]}`, "ns in: anybody on tcp"},
		{`{podSelector: {}, ingress: [{ports: [{protocol: SCTP, port: 7}, {port: 80}, {port: 81}, {port: web}]}]}`, `ns in: anybody on tcp/80-81, sctp/7, tcp/"web"`},
	} {
		p := parseYAML(t, Name{"ns", "p"}, "spec: "+c.spec)
		if p.err != nil {
			t.Errorf("%s: %v", c.spec, p.err)
			continue
		}
		got := p.policy.subject.ns
		for d, word := range []string{" in: ", " out: "} {
			if !p.policy.isolates[d] {
				continue
			}
			var rules []string
			for _, r := range p.policy.rules[d] {
				rules = append(rules, r.peersText()+" on "+portsText(r.all, r.ports, r.named))
			}
			if rules == nil {
				rules = []string{"no rules"}
			}
			got += word + strings.Join(rules, "; ")
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.spec, got, c.want)
		}
	}
}
