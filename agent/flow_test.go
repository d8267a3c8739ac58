package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// shopPolicy isolates pods with the label app of one identity.
func shopPolicy(name, app, rules string) *clustermesh.Policy {
	return &clustermesh.Policy{Namespace: "shop", Name: name, JSON: fmt.Appendf(nil,
		`{"metadata":{"namespace":"shop","name":%q},"spec":{"podSelector":{"matchLabels":{"app":%q}},"ingress":%s}}`, name, app, rules)}
}

// policedWorld has labels as the mesh API server makes them, and two policies for
// pods of identity 5, of which aws-n1 runs pod-1-10.
func policedWorld(t *testing.T) *world {
	w := newWorld(t)
	for _, f := range []struct {
		name string
		id   clustermesh.ID
	}{{"aws", 1}, {"gcp", 2}} {
		var labels []clustermesh.Record
		for i := uint32(5); i < 7; i++ {
			labels = append(labels, &clustermesh.IdentityRecord{ID: clustermesh.MakeIdentity(f.id, i),
				Labels: clustermesh.SecurityLabels(f.name, "shop", "", map[string]string{"app": fmt.Sprint("app", i)}, nil)})
		}
		w.mesh.Put(t, f.name, export, labels...)
	}
	named := aws.Address(1, 10, 5)
	named.NamedPorts = []clustermesh.NamedPort{{Name: "http", Protocol: clustermesh.TCP, Port: 8080}}
	w.mesh.Put(t, "aws", export, named, aws.Address(2, 20, 6))
	w.mesh.Put(t, "aws", local,
		shopPolicy("deny", "app5", "[]"),
		shopPolicy("web", "app5", `[{"from":[{"podSelector":{"matchLabels":{"app":"app6"}}}],"ports":[{"port":"http"}]}]`),
		shopPolicy("bad", "app6", `[{"ports":[{"port":99999}]}]`))
	w.mesh.Put(t, "aws", local, &clustermesh.Workload{Namespace: "kube", Name: "proxy", Node: "aws-n2", HostNetwork: true})
	return w
}

func event(verdict agent.FlowVerdict, reason, src, dst string, change ...func(*agent.FlowEvent)) agent.FlowEvent {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	e := agent.FlowEvent{
		Time: time.Date(2026, 11, 23, 12, 0, 0, 123e6, time.UTC), Verdict: verdict, Reason: reason, Proto: 6,
		Src: agent.MakeAddr(s.Addr()), SrcPort: s.Port(), Dst: agent.MakeAddr(d.Addr()), DstPort: d.Port(), SrcIdentity: 2, DstIdentity: 2,
	}
	for _, c := range change {
		c(&e)
	}
	return e
}

func between(src, dst clustermesh.Identity) func(*agent.FlowEvent) {
	return func(e *agent.FlowEvent) { e.SrcIdentity, e.DstIdentity = uint32(src), uint32(dst) }
}

func by(rule string) func(*agent.FlowEvent) {
	return func(e *agent.FlowEvent) { e.Rule = policy.RuleID(rule) }
}

var (
	app5  = clustermesh.MakeIdentity(1, 5)
	app6  = clustermesh.MakeIdentity(1, 6)
	other = clustermesh.MakeIdentity(2, 5)
)

func happenings() []agent.FlowEvent {
	return []agent.FlowEvent{
		event(agent.FlowForwarded, "flow_new", "10.1.2.20:40000", "10.1.1.10:8080", between(app6, app5), by("NetworkPolicy shop/web ingress[0]")),
		event(agent.FlowDropped, "drop_policy_ingress", "10.1.2.20:40001", "10.1.1.10:9090", between(app6, app5)),
		event(agent.FlowDropped, "drop_policy_egress", "10.1.1.10:5000", "203.0.113.9:443", between(app5, 2), by("NetworkPolicy shop/gone egress[0]")),
		event(agent.FlowForwarded, "flow_new", "10.1.1.10:5001", "172.20.1.1:80", between(app5, other), func(e *agent.FlowEvent) {
			e.Backend, e.BackendPort = agent.MakeAddr(netip.MustParseAddr("10.2.1.10")), 8080
		}),
		event(agent.FlowCut, "flow_cut", "10.2.1.10:6000", "10.1.1.10:8080", between(other, app5)),
		event(agent.FlowDropped, "drop_spoofed", "198.51.100.1:1", "10.1.1.10:1", func(e *agent.FlowEvent) { e.IfIndex = 7 }),
		event(agent.FlowForwarded, "flow_new", "10.1.1.1:1", "10.1.1.10:1", between(1, app5)),
		event(agent.FlowForwarded, "flow_new", "10.1.2.1:1", "10.1.1.10:1", between(3, app5)),
		event(agent.FlowForwarded, "flow_new", "10.1.2.99:1", "10.1.1.10:1", between(app6, app5)),
		event(agent.FlowForwarded, "flow_new", "[fd00:2:1::77]:1", "[fd00:1:1::10]:1", between(clustermesh.MakeIdentity(2, 0), app5), func(e *agent.FlowEvent) { e.Proto = 58 }),
	}
}

const happened = `12:00:00.123 forwarded shop/pod-2-20 10.1.2.20:40000 → shop/pod-1-10 10.1.1.10:8080 tcp: NetworkPolicy shop/web ingress[0]
12:00:00.123 dropped   shop/pod-2-20 10.1.2.20:40001 → shop/pod-1-10 10.1.1.10:9090 tcp: drop_policy_ingress, no rule allows it and NetworkPolicy shop/deny, NetworkPolicy shop/web isolate the pod
12:00:00.123 dropped   shop/pod-1-10 10.1.1.10:5000 → world 203.0.113.9:443 tcp: drop_policy_egress, rule RULE (of a policy that is gone)
12:00:00.123 forwarded shop/pod-1-10 10.1.1.10:5001 → gcp/shop/pod-1-10 10.2.1.10:8080 tcp (service shop/checkout)
12:00:00.123 cut       gcp/shop/pod-1-10 10.2.1.10:6000 → shop/pod-1-10 10.1.1.10:8080 tcp: flow_cut
12:00:00.123 dropped   world 198.51.100.1:1 → shop/pod-1-10 10.1.1.10:1 tcp: drop_spoofed
12:00:00.123 forwarded host 10.1.1.1:1 → shop/pod-1-10 10.1.1.10:1 tcp
12:00:00.123 forwarded node/aws-n2 10.1.2.1:1 → shop/pod-1-10 10.1.1.10:1 tcp
12:00:00.123 forwarded shop(app=app6) 10.1.2.99:1 → shop/pod-1-10 10.1.1.10:1 tcp
12:00:00.123 forwarded gcp/some pod [fd00:2:1::77]:1 → shop(app=app5) [fd00:1:1::10]:1 icmpv6
`

func lines(t *testing.T, body string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(body) {
		var f agent.Flow
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		fmt.Fprintln(&b, f.Line())
	}
	return b.String()
}

func TestFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policedWorld(t)
		w.start()
		defer w.stop()
		if err := w.a.Observe(t.Context(), happenings()); err != nil {
			t.Fatal(err)
		}
		code, body := w.get("/v1/flows")
		want := strings.Replace(happened, "RULE", fmt.Sprintf("%08x", policy.RuleID("NetworkPolicy shop/gone egress[0]")), 1)
		if got := lines(t, body); code != 200 || got != want {
			t.Errorf("%d\n%swant\n%s", code, got, want)
		}
		for _, c := range []struct {
			query string
			want  int
		}{
			{"last=3", 3}, {"last=0", 0}, {"last=999", 10}, {"verdict=dropped", 3}, {"verdict=cut", 1}, {"verdict=dropped&last=1", 1},
			{"pod=shop/pod-1-10", 9}, {"pod=aws/shop/pod-2-20", 2}, {"pod=gcp/shop/pod-1-10", 2}, {"pod=shop/none", 0},
			{"policy=shop/web", 2}, {"policy=shop/deny", 1}, {"policy=web", 0},
		} {
			if _, body := w.get("/v1/flows?" + c.query); strings.Count(body, "\n") != c.want {
				t.Errorf("%s: %d lines, want %d:\n%s", c.query, strings.Count(body, "\n"), c.want, body)
			}
		}
		for _, bad := range []string{"last=x", "last=-1", "verdict=maybe"} {
			if code, body := w.get("/v1/flows?" + bad); code != 400 || !strings.Contains(body, "want") {
				t.Errorf("%s: %d %s", bad, code, body)
			}
		}
		if _, body := w.get("/metrics"); !strings.Contains(body, "tombolo_agent_flows_total 10\n") {
			t.Error("the metrics do not count flows")
		}
	})
}

// Only the last ones are kept, in order.
func TestFlowsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policedWorld(t)
		w.start()
		defer w.stop()
		var events []agent.FlowEvent
		for i := range 5000 {
			events = append(events, event(agent.FlowForwarded, "flow_new", "10.1.2.20:1", "10.1.1.10:8080", func(e *agent.FlowEvent) { e.IfIndex = uint32(i) }))
		}
		if err := w.a.Observe(t.Context(), events); err != nil {
			t.Fatal(err)
		}
		_, body := w.get("/v1/flows")
		first, n := -1, 0
		for line := range strings.Lines(body) {
			var f agent.Flow
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				t.Fatal(err)
			}
			if first < 0 {
				first = int(f.IfIndex)
			}
			if int(f.IfIndex) != first+n {
				t.Fatalf("flow %d comes after %d others from %d on", f.IfIndex, n, first)
			}
			n++
		}
		if first+n != 5000 || n != 4096 {
			t.Errorf("%d flows from %d on", n, first)
		}
	})
}

// slowClient is a client that reads nothing until it is let.
type slowClient struct {
	*httptest.ResponseRecorder
	gate    chan struct{}
	blocked bool
}

func (s *slowClient) Write(p []byte) (int, error) {
	if s.blocked {
		<-s.gate
	}
	return s.ResponseRecorder.Write(p)
}

// A follower gets what comes; a slow one holds nobody up and is told what it lost.
func TestFlowsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policedWorld(t)
		w.start()
		defer w.stop()
		ctx, leave := context.WithCancel(t.Context())
		slow := &slowClient{ResponseRecorder: httptest.NewRecorder(), gate: make(chan struct{}), blocked: true}
		quick := httptest.NewRecorder()
		ended := make(chan struct{}, 2)
		for _, follower := range []struct {
			to    any
			query string
		}{{slow, "follow=1&last=0"}, {quick, "follow=1&last=0&verdict=cut"}} {
			go func() {
				r := httptest.NewRequest("GET", "/v1/flows?"+follower.query, nil).WithContext(ctx)
				if follower.to == any(slow) {
					w.a.Handler().ServeHTTP(slow, r)
				} else {
					w.a.Handler().ServeHTTP(quick, r)
				}
				ended <- struct{}{}
			}()
		}
		synctest.Wait()
		observe := func(n int, verdict agent.FlowVerdict) {
			for range n {
				if err := w.a.Observe(ctx, []agent.FlowEvent{event(verdict, "flow_new", "10.1.2.20:1", "10.1.1.10:8080")}); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		observe(1, agent.FlowForwarded) // the slow one hangs in this
		observe(1, agent.FlowCut)
		if got := quick.Body.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"cut"`) {
			t.Errorf("the quick one has\n%s", got)
		}
		observe(3000, agent.FlowForwarded)
		slow.blocked = false
		close(slow.gate)
		synctest.Wait()
		if got := slow.Body.String(); strings.Count(got, "\n") != 1+1024+1 || !strings.Contains(got, `"kind":"LostFlows","lost":1977}`) {
			t.Errorf("the slow one has %d lines, the last %s", strings.Count(got, "\n"), got[strings.LastIndex(strings.TrimSpace(got), "\n")+1:])
		}
		leave()
		<-ended
		<-ended
	})
}
