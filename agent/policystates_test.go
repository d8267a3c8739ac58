package agent_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// labelled is identity i of a cluster as pods of namespace shop have it.
func labelled(f agenttest.Facts, i uint32, app string) *clustermesh.IdentityRecord {
	return &clustermesh.IdentityRecord{ID: clustermesh.MakeIdentity(f.ID, i), Labels: []clustermesh.Label{
		{Key: "app", Value: app}, {Key: "namespace:kubernetes.io/metadata.name", Value: "shop"},
		{Key: clustermesh.LabelCluster, Value: f.Name}, {Key: clustermesh.LabelNamespace, Value: "shop"},
	}}
}

// isolating isolates the pods of app db for incoming connections but from peer.
func isolating(name, peer string) *clustermesh.Policy {
	return &clustermesh.Policy{Namespace: "shop", Name: name, JSON: []byte(fmt.Sprintf(
		`{"metadata":{"name":%q,"namespace":"shop"},"spec":{"podSelector":{"matchLabels":{"app":"db"}},"policyTypes":["Ingress"],"ingress":[{"from":[%s],"ports":[{"port":"sql"}]}]}}`, name, peer))}
}

const (
	web      = `{"podSelector":{"matchLabels":{"app":"web"}}}`
	webOfAll = `{"podSelector":{"matchExpressions":[{"key":"app","operator":"In","values":["web"]},{"key":"tombolo.io/cluster","operator":"Exists"}]}}`
	block    = `{"ipBlock":{"cidr":"203.0.113.0/24","except":["203.0.113.128/25"]}}`
)

func policyStates() (states []state, want []string) {
	db := with(aws.Address(1, 10, 5), func(a *clustermesh.Address) {
		a.NamedPorts = []clustermesh.NamedPort{{Name: "sql", Protocol: clustermesh.TCP, Port: 5432}}
	})
	base := says(aws, export, aws.Node(1), labelled(aws, 5, "db"), labelled(aws, 6, "web"), db, aws.Address(1, 11, 6))
	peer := says(aws, local, gcp.Peer())
	far := says(gcp, export, gcp.Node(1), labelled(gcp, 6, "web"), gcp.Address(1, 11, 6))
	add := func(has string, records ...func(state)) {
		states, want = append(states, said(records...)), append(want, has)
	}
	add("", base, peer, far)
	add("ingress 1:6 tcp/5432", base, peer, far, says(aws, local, isolating("db", web)))
	add("ingress 2:6 tcp/5432", base, peer, far, says(aws, local, isolating("db", webOfAll)))
	add("203.0.113.128/25 class=0000000000000000", base, peer, far, says(aws, local, isolating("db", web+","+block)))
	add("ingress 1:6 tcp/5432", base, says(aws, local, isolating("db", webOfAll)))             // without the peer
	add("10.1.1.10 if=7 pod=02:00:00:00:00:01 host=02:00:00:00:00:02 identity=1:5 closed=1\n", // its labels are not known
		says(aws, export, aws.Node(1), labelled(aws, 6, "web"), db), says(aws, local, isolating("db", web)))
	add("10.1.1.10 if=7 pod=02:00:00:00:00:01 host=02:00:00:00:00:02 identity=1:0 closed=1\n", // nothing is known of it
		says(aws, export, aws.Node(1)), says(aws, local, isolating("db", web)))
	add("10.1.1.10 if=7 pod=02:00:00:00:00:01 host=02:00:00:00:00:02 identity=1:7\n", // relabelled
		says(aws, export, aws.Node(1), labelled(aws, 7, "cache"), with(aws.Address(1, 10, 7), func(*clustermesh.Address) {})), says(aws, local, isolating("db", web)))
	add("ingress 1:5 tcp/8080", // identities that mean something else, a port of another number
		says(aws, export, aws.Node(1), labelled(aws, 6, "db"), labelled(aws, 5, "web"), with(aws.Address(1, 10, 6), func(a *clustermesh.Address) {
			a.NamedPorts = []clustermesh.NamedPort{{Name: "sql", Protocol: clustermesh.TCP, Port: 8080}}
		})), says(aws, local, isolating("db", web)))
	return states, want
}

// What policy says of this node's pods depends on the last state alone, whatever
// was said before, and how; and it is what the policy means.
func TestPolicyStatesInEveryOrder(t *testing.T) {
	pod := agent.LocalPod{
		UID: "uid-1-1-10", Namespace: "shop", Name: "db", Addresses: []netip.Addr{aws.Pod(1, 10)},
		IfIndex: 7, PodMAC: agent.MAC{2, 0, 0, 0, 0, 1}, HostMAC: agent.MAC{2, 0, 0, 0, 0, 2},
	}
	states, has := policyStates()
	for last := range states {
		var want string
		for _, e := range expanders {
			for _, d := range deliveries {
				t.Run(fmt.Sprintf("%d/%s/%s", last, e.name, d.name), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						got := runStates(t, states, e.path(len(states), last), d, pod)
						if want == "" {
							want = got
						}
						if got != want {
							t.Errorf("got\n%s\nwant, as by the first path,\n%s", got, want)
						}
						if !strings.Contains(got, has[last]) || has[last] == "" && strings.Contains(got, "flags=isolated") {
							t.Errorf("got\n%s\nwithout %q", got, has[last])
						}
					})
				})
			}
		}
	}
}

// A table that is nine tenths full is a problem before it is full.
func TestNearlyFullTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.tables.Services = agent.NewFake[agent.ServiceKey, agent.ServiceRow](agent.TableServices, 100)
		w.tables.IPs = agent.NewFake[agent.Addr, agent.IPCacheRow](agent.TableIPs, 15)
		w.start()
		defer w.stop()
		_, body := w.get("/v1/status")
		if !strings.Contains(body, "table ips is nearly full: 14 of 15 rows") || strings.Contains(body, "table services") {
			t.Errorf("status:\n%s", body)
		}
	})
}
