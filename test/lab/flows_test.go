package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
)

// What policy forbids is dropped, its event names the policy, and a question
// about it is answered alike; in both families.
func TestPolicySeen(t *testing.T) {
	t.Parallel()
	r := newEmptyRig(t, Options{})
	r.a = must(r.AddCluster("aws", 1))(t)
	noError(t, r.a.Start(r.ctx))
	n := r.a.Nodes[0]
	server := must(n.AddPod(r.ctx, PodSpec{Name: "db", Labels: map[string]string{"app": "db"}, Port: checkoutPort, Argv: ServeArgv("aws/db", checkoutPort)}))(t)
	web := must(n.AddPod(r.ctx, PodSpec{Name: "web", Labels: map[string]string{"app": "web"}}))(t)
	api := must(n.AddPod(r.ctx, PodSpec{Name: "api", Labels: map[string]string{"app": "api"}}))(t)
	noError(t, r.a.Apply("policy", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: http}]}]
`))
	for _, c := range []struct {
		from    *Pod
		verdict agent.FlowVerdict
		says    string
	}{
		{api, agent.FlowForwarded, "NetworkPolicy default/db ingress[0]"},
		{web, agent.FlowDropped, "drop_policy_ingress, no rule allows it and NetworkPolicy default/db isolates the pod"},
	} {
		name := "default/" + c.from.Name
		r.eventually(20*time.Second, "the agent answers that what "+name+" sends is "+string(c.verdict), func() error {
			a, err := askPolicy(r.ctx, n, trace.Question{From: name, To: "default/db", Port: "http"})
			if err != nil {
				return err
			}
			if (a.Verdict == trace.Allowed) != (c.verdict == agent.FlowForwarded) {
				return fmt.Errorf("%s: %s", a.Verdict, a.Why)
			}
			return nil
		})
		for _, to := range server.Addresses {
			to := to.String()
			r.eventually(20*time.Second, fmt.Sprintf("%s to %s: %s", name, to, c.verdict), func() error {
				dial := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", to, checkoutPort)
				_, err := c.from.Run(r.ctx, "timeout", "1", "bash", "-c", dial)
				if (err == nil) != (c.verdict == agent.FlowForwarded) {
					return fmt.Errorf("the connection: %v", err)
				}
				text, err := n.Get(r.ctx, "/v1/flows?pod="+name+"&policy=default/db&verdict="+string(c.verdict))
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(text)) {
					var f agent.Flow
					if err := json.Unmarshal([]byte(line), &f); err != nil {
						return err
					}
					if f.Destination.Address == to && f.Source.Pod == c.from.Name && f.Destination.Pod == "db" && f.Destination.Port == checkoutPort && strings.Contains(f.Line(), c.says) {
						return nil
					}
				}
				return fmt.Errorf("no event says %q:\n%s", c.says, text)
			})
		}
	}
	metrics := string(must(n.Get(r.ctx, "/metrics"))(t))
	for _, line := range []string{`tombolo_bpf_events_total{reason="event_lost"} 0`, `tombolo_bpf_events_total{reason="drop_policy_ingress"} `} {
		if !strings.Contains(metrics, "\n"+line) {
			t.Errorf("the metrics lack %q", line)
		}
	}
	if strings.Contains(metrics, "\n"+`tombolo_bpf_events_total{reason="drop_policy_ingress"} 0`) {
		t.Error("the metrics count no drops")
	}
}

// askPolicy asks a node's agent.
func askPolicy(ctx context.Context, n *Node, q trace.Question) (trace.Answer, error) {
	var a trace.Answer
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.Socket())
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/v1/policy/trace", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		var e agent.APIError
		_ = json.NewDecoder(res.Body).Decode(&e) // the status says enough without
		return a, fmt.Errorf("%s: %s", res.Status, e.Error)
	}
	return a, json.NewDecoder(res.Body).Decode(&a)
}
