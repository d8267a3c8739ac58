package agent_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// The list of endpoints says of each how its policy judges, by which policies.
func TestEndpointList(t *testing.T) {
	floor := &clustermesh.ClusterPolicy{Name: "floor", JSON: []byte(`{"metadata":{"name":"floor"},"spec":{"tier":"Admin","priority":3,
		"subject":{"pods":{"podSelector":{"matchLabels":{"app":"web"}}}},"egress":[{"action":"Deny","to":[{"networks":["203.0.113.0/24"]}]}]}}`)}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Pods = &fakePods{}
		w.mesh.Put(t, "aws", export, labelled(aws, 5, "db"), labelled(aws, 6, "web"), labelled(aws, 7, "cache"), aws.Address(1, 11, 6), aws.Address(1, 12, 7))
		w.mesh.Put(t, "aws", local, isolating("db", web), floor)
		w.start()
		defer w.stop()
		pod := func(n int, name string) agent.LocalPod {
			return agent.LocalPod{UID: fmt.Sprintf("uid-1-1-%d", n), Namespace: "shop", Name: name, Addresses: []netip.Addr{aws.Pod(1, n)}, IfIndex: uint32(n)}
		}
		w.a.SetPods([]agent.LocalPod{pod(10, "db"), pod(11, "web"), pod(12, "cache\x1b"), pod(13, "new")})
		time.Sleep(2 * time.Minute) // virtual
		synctest.Wait()
		code, body := w.request("GET", "/v1/endpoints", nil)
		var list agent.EndpointList
		if err := json.Unmarshal([]byte(body), &list); err != nil || code != 200 {
			t.Fatalf("%d, %v: %s", code, err, body)
		}
		var got []string
		for _, e := range list.Items {
			got = append(got, fmt.Sprintf("%s %s %s in=%s%v out=%s%v", e.Name, e.State, e.Identity, e.Ingress.Mode, e.Ingress.Policies, e.Egress.Mode, e.Egress.Policies))
		}
		want := []string{
			`cache\u001b ready 1:7 in=open[] out=open[]`,
			"db ready 1:5 in=isolated[NetworkPolicy shop/db] out=open[]",
			"new ready 1:0 in=closed[] out=closed[]", // its labels are not known
			"web ready 1:6 in=open[] out=rules[ClusterNetworkPolicy floor]",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if labels := list.Items[1].Labels; labels["app"] != "db" || labels["tombolo.io/namespace"] != "shop" {
			t.Errorf("labels of db: %v", labels)
		}
		if list.Node != "aws-n1" || list.Unmanaged == nil {
			t.Errorf("node %q, unmanaged %v", list.Node, list.Unmanaged)
		}
	})
}
