package agent_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// An endpoint is created, ready, and disconnected as its rows come and go; pods that
// the cluster places here and nobody connects by Tombolo are told apart from those
// that are about to be.
func TestEndpointStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Pods = &fakePods{}
		endpoints := agent.NewFaulty(w.tables.Endpoints, agent.NoFaults)
		w.tables.Endpoints = endpoints
		now := clustermesh.OriginAt(time.Now())
		w.mesh.Put(t, "aws", local,
			&clustermesh.Workload{Namespace: "shop", Name: "managed", Node: "aws-n1", Owner: "uid-1", Origin: now},
			&clustermesh.Workload{Namespace: "shop", Name: "static", Node: "aws-n1", Owner: "mirror", Origin: now},
			&clustermesh.Workload{Namespace: "shop", Name: "host", Node: "aws-n1", Owner: "uid-3", HostNetwork: true, Origin: now},
			&clustermesh.Workload{Namespace: "shop", Name: "elsewhere", Node: "aws-n2", Owner: "uid-4", Origin: now},
			&clustermesh.Workload{Namespace: "shop", Name: "others", Node: "aws-n1", Owner: "uid-5", Origin: now})
		w.start()
		defer w.stop()
		expect := func(states, unmanaged string) {
			t.Helper()
			synctest.Wait()
			_, body := w.request("GET", "/v1/status", nil)
			var s agent.Status
			if err := json.Unmarshal([]byte(body), &s); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range s.Endpoints {
				got = append(got, e.Name+"="+e.State)
			}
			if strings.Join(got, " ") != states || fmt.Sprint(s.Unmanaged) != unmanaged {
				t.Errorf("endpoints %v, unmanaged %v; want %s, %s", got, s.Unmanaged, states, unmanaged)
			}
		}
		refuse := func(op agent.FaultOp) {
			endpoints.SetSchedule(func(o agent.FaultOp, _, _ int) agent.Fault {
				if o == op {
					return agent.Fault{Err: errors.New("no room")}
				}
				return agent.Fault{}
			})
		}
		pods := []agent.LocalPod{
			{UID: "uid-1", Namespace: "shop", Name: "managed", Addresses: []netip.Addr{netip.MustParseAddr("10.1.1.20")}, IfIndex: 7},
			{UID: "uid-2", Namespace: "shop", Name: "static", Addresses: []netip.Addr{netip.MustParseAddr("10.1.1.21")}, IfIndex: 8},
		}
		expect("", "[]") // all are new: they may still come
		refuse(agent.OpPut)
		w.a.SetPods(pods)
		expect("managed=creating static=creating", "[]")
		endpoints.SetSchedule(agent.NoFaults)
		time.Sleep(2 * time.Minute) // virtual
		expect("managed=ready static=ready", "[{shop others}]")
		if _, metrics := w.request("GET", "/metrics", nil); !strings.Contains(metrics, `tombolo_endpoints{state="ready"} 2`) || !strings.Contains(metrics, "tombolo_unmanaged_pods 1") {
			t.Errorf("metrics lack the endpoints")
		}
		refuse(agent.OpDelete)
		w.a.SetPods(pods[:1])
		time.Sleep(time.Second) // virtual
		expect("=disconnecting managed=regenerating", "[{shop others} {shop static}]")
		endpoints.SetSchedule(agent.NoFaults)
		time.Sleep(2 * time.Minute) // virtual
		expect("managed=ready", "[{shop others} {shop static}]")
	})
}
