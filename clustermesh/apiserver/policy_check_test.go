package apiserver

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

// decoded is the one object of a manifest, as a source delivers it.
func decoded[T any](t *testing.T, manifest string) T {
	t.Helper()
	docs, err := decodeManifest([]byte(manifest), nil)
	if err != nil {
		t.Fatalf("%s\n%v", manifest, err)
	}
	return docs[0].objects[0].obj.(T)
}

func TestValidateNetworkPolicy(t *testing.T) {
	for spec, want := range map[string]string{
		`{podSelector: {}}`: "",
		`{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{ports: [{port: 53, protocol: UDP}]}]}`: "",
		`{podSelector: {matchLabels: {"a b": c}}}`:                                                     "spec.podSelector.matchLabels",
		`{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}`:                     "spec.podSelector.matchExpressions[0].operator",
		`{podSelector: {matchExpressions: [{key: a, operator: In}]}}`:                                  "spec.podSelector.matchExpressions[0].values",
		`{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}`:                 "spec.podSelector.matchExpressions[0].values",
		`{podSelector: {}, policyTypes: [Both]}`:                                                       "spec.policyTypes[0]",
		`{podSelector: {}, policyTypes: [Ingress, Egress, Ingress]}`:                                   "spec.policyTypes: Invalid",
		`{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}`:                                    "spec.ingress[0].ports[0].protocol",
		`{podSelector: {}, ingress: [{ports: [{port: 0}]}]}`:                                           "spec.ingress[0].ports[0].port",
		`{podSelector: {}, ingress: [{ports: [{port: HTTP}]}]}`:                                        "spec.ingress[0].ports[0].port",
		`{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 80}]}]}`:                             "",
		`{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 65536}]}]}`:                          "spec.ingress[0].ports[0].endPort",
		`{podSelector: {}, ingress: [{ports: [{port: http, endPort: 81}]}]}`:                           "spec.ingress[0].ports[0].endPort",
		`{podSelector: {}, egress: [{ports: [{endPort: 81}]}]}`:                                        "spec.egress[0].ports[0].endPort",
		`{podSelector: {}, egress: [{to: [{}]}]}`:                                                      "spec.egress[0].to[0]: Required",
		`{podSelector: {}, egress: [{to: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}`:          "spec.egress[0].to[0]: Forbidden",
		`{podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {a: "b c"}}}]}]}`:          "spec.egress[0].to[0].namespaceSelector",
		`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0}}]}]}`:                             "spec.egress[0].to[0].ipBlock.cidr",
		`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.1/8, except: [10.1.0.0/16]}}]}]}`:    "",
		`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}`:     "spec.egress[0].to[0].ipBlock.except[0]",
		`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: ["fd00::/8"]}}]}]}`:     "spec.egress[0].to[0].ipBlock.except[0]",
		`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: "fd00::/8", except: ["fd01::/16", x]}}]}]}`: "spec.egress[0].to[0].ipBlock.except[1]",
	} {
		err := validateNetworkPolicy(decoded[*networkingv1.NetworkPolicy](t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: "+spec))
		checkFirst(t, spec, err, want)
	}
}

func checkFirst(t *testing.T, spec string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
		t.Errorf("%s\n%v; want %q", spec, err, want)
	}
}

func TestValidateClusterPolicy(t *testing.T) {
	rule := func(r string) string {
		return "tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [" + r + "]"
	}
	to := func(peer string) string { return rule("{action: Accept, to: [" + peer + "]}") }
	protocol := func(p string) string {
		return rule("{action: Accept, to: [{namespaces: {}}], protocols: [" + p + "]}")
	}
	for spec, want := range map[string]string{
		rule(""):                                                                                       "",
		"priority: 1, subject: {namespaces: {}}":                                                       "spec.tier: Required",
		"tier: Admin, subject: {namespaces: {}}":                                                       "spec.priority: Required",
		"tier: Admin, priority: null, subject: {namespaces: {}}":                                       "spec.priority: Required",
		"tier: Admin, priority: 0, subject: {namespaces: {}}":                                          "",
		"tier: Admin, priority: 1001, subject: {namespaces: {}}":                                       "spec.priority: Invalid",
		"tier: Admin, priority: -1, subject: {namespaces: {}}":                                         "spec.priority: Invalid",
		"tier: admin, priority: 1, subject: {namespaces: {}}":                                          "spec.tier: Unsupported",
		"tier: Admin, priority: 1":                                                                     "spec.subject: Required",
		"tier: Admin, priority: 1, subject: {}":                                                        "spec.subject: Invalid",
		"tier: Admin, priority: 1, subject: {pods: {}}":                                                "spec.subject.pods.podSelector: Required",
		"tier: Admin, priority: 1, subject: {pods: {podSelector: {}}}":                                 "",
		"tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}":                 "spec.subject: Invalid",
		"tier: Admin, priority: 1, subject: {namespaces: {matchExpressions: [{key: a, operator: x}]}}": "spec.subject.namespaces.matchExpressions[0].operator",
		rule(strings.Repeat("{action: Deny, to: [{namespaces: {}}]}, ", 26)):                           "spec.egress: Too many",
		rule("{action: Allow, to: [{namespaces: {}}]}"):                                                "spec.egress[0].action",
		rule("{action: Deny, to: []}"):                                                                 "spec.egress[0].to: Required",
		rule("{action: Deny}"):                                                                         "spec.egress[0].to: Required",
		rule("{name: " + strings.Repeat("x", 101) + ", action: Deny, to: [{namespaces: {}}]}"):         "spec.egress[0].name",
		rule("{action: Deny, to: [{domainNames: [example.com]}]}"):                                     "spec.egress[0].to[0].domainNames: Forbidden",
		to("{}"):                                              "spec.egress[0].to[0]: Invalid",
		to("{newer: {}}"):                                     "spec.egress[0].to[0]: Invalid",
		to("{nodes: {}, namespaces: {}}"):                     "spec.egress[0].to[0]: Invalid",
		to("{pods: {namespaceSelector: {}}}"):                 "spec.egress[0].to[0].pods.podSelector: Required",
		to("{networks: []}"):                                  "spec.egress[0].to[0].networks: Required",
		to("{networks: [10.0.0.1/8]}"):                        "spec.egress[0].to[0].networks[0]: Invalid",
		to("{networks: [x]}"):                                 "spec.egress[0].to[0].networks[0]: Invalid",
		to("{networks: [10.0.0.0/8, 10.0.0.0/8]}"):            "spec.egress[0].to[0].networks[1]: Duplicate",
		to(`{networks: [10.0.0.0/8, "fd00::/8"]}`):            "",
		to("{domainNames: [localhost]}"):                      "spec.egress[0].to[0].domainNames[0]",
		to(`{domainNames: ["*.example.com", example.com]}`):   "",
		protocol(""):                                          "spec.egress[0].protocols: Required",
		protocol("{}"):                                        "spec.egress[0].protocols[0]: Invalid",
		protocol("{tcp: {}}"):                                 "spec.egress[0].protocols[0].tcp.destinationPort: Required",
		protocol("{tcp: {destinationPort: {}}}"):              "spec.egress[0].protocols[0].tcp.destinationPort: Invalid",
		protocol("{udp: {destinationPort: {number: 70000}}}"): "spec.egress[0].protocols[0].udp.destinationPort.number",
		protocol("{sctp: {destinationPort: {range: {start: 9, end: 9}}}}"):                                                        "spec.egress[0].protocols[0].sctp.destinationPort.range: Invalid",
		protocol("{sctp: {destinationPort: {number: 1, range: {start: 8, end: 9}}}}"):                                             "spec.egress[0].protocols[0].sctp.destinationPort: Invalid",
		protocol("{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}"):                                    "spec.egress[0].protocols[0]: Invalid",
		protocol("{destinationNamedPort: http}"):                                                                                  "",
		rule("{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: http}]}"):                                      "spec.egress[0].protocols[0].destinationNamedPort: Forbidden",
		"tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{networks: [10.0.0.0/8]}]}]":     "spec.ingress[0].from[0]: Invalid",
		"tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}, {pods: {}}]}]": "spec.ingress[0].from[1].pods.podSelector: Required",
	} {
		for _, version := range []string{"v1alpha2", "v1beta1"} {
			err := validateClusterPolicy(decoded[*clusterPolicy](t, "apiVersion: policy.networking.k8s.io/"+version+"\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {"+spec+"}"))
			checkFirst(t, spec, err, want)
		}
	}
}
