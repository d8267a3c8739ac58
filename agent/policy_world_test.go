package agent_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
)

// Questions about the live mesh: what the agent knows of pods, nodes, addresses
// and policies.
func TestPolicyTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policedWorld(t)
		w.start()
		defer w.stop()
		for _, c := range []struct{ from, to, port, want string }{
			{"shop/pod-2-20", "shop/pod-1-10", "http", "allowed: ingress of shop/pod-1-10 is allowed: NetworkPolicy shop/web ingress[0]"},
			{"10.1.2.20", "10.1.1.10", "8080", "allowed: ingress of shop/pod-1-10 is allowed: NetworkPolicy shop/web ingress[0]"},
			{"shop/pod-2-20", "aws/shop/pod-1-10", "80", "denied: ingress of shop/pod-1-10 is denied: NetworkPolicy shop/deny, NetworkPolicy shop/web isolate the pod and no rule allows this"},
			{"gcp/shop/pod-1-10", "shop/pod-1-10", "http", "denied: ingress of shop/pod-1-10 is denied: NetworkPolicy shop/deny"},
			{"shop/pod-1-10", "gcp/shop/pod-1-10", "80", "allowed: no policy has a say"},
			{"shop/pod-1-10", "shop/pod-2-20", "80", "denied: ingress of shop/pod-2-20 is denied: NetworkPolicy shop/bad isolates the pod"},
			{"host", "shop/pod-1-10", "1", "allowed: no policy has a say"},
			{"node/aws-n1", "shop/pod-1-10", "1", "allowed: no policy has a say"},
			{"node/aws-n2", "shop/pod-1-10", "1", "denied: ingress of shop/pod-1-10"},
			{"192.168.1.2", "shop/pod-1-10", "1", "denied: ingress of shop/pod-1-10"},
			{"kube/proxy", "shop/pod-1-10", "1", "denied: ingress of shop/pod-1-10"},
			{"kube/proxy", "shop/pod-2-20", "1", "allowed: no policy has a say"},
			{"world", "shop/pod-1-10", "8080", "denied: ingress of shop/pod-1-10"},
			{"10.2.2.77", "shop/pod-1-10", "8080", "denied: ingress of shop/pod-1-10"},
			{"shop/none", "shop/pod-1-10", "1", "error: no pod shop/none with an address is known"},
			{"azure/shop/none", "shop/pod-1-10", "1", "error: no cluster azure"},
			{"node/none", "shop/pod-1-10", "1", "error: no node none"},
			{"", "shop/pod-1-10", "1", "error: from: an end is missing"},
			{"shop/pod-1-10", "shop/pod-2-20", "https", `error: shop/pod-2-20 has no port called "https"`},
		} {
			body, _ := json.Marshal(trace.Question{From: c.from, To: c.to, Port: trace.Text(c.port)})
			code, text := w.request("POST", "/v1/policy/trace", strings.NewReader(string(body)))
			var a struct {
				trace.Answer
				Error string `json:"error"`
			}
			if err := json.Unmarshal([]byte(text), &a); err != nil {
				t.Fatal(err)
			}
			got := a.Verdict + ": " + a.Why
			if code != 200 {
				got = "error: " + a.Error
			}
			if c.from == "gcp/shop/pod-1-10" && a.From.Labels["app"] != "app5" {
				t.Errorf("the labels of a pod of a peer are not told: %v", a.From.Labels)
			}
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("%s to %s on %s: %s, want %s", c.from, c.to, c.port, got, c.want)
			}
		}
	})
}

// A batch answers every line in its place, also those that are no questions.
func TestPolicyTraceBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policedWorld(t)
		w.start()
		defer w.stop()
		var body, want strings.Builder
		for i := range 1000 {
			switch i % 4 {
			case 0:
				fmt.Fprintf(&body, `{"id":%d,"from":"shop/pod-2-20","to":"shop/pod-1-10","port":"http"}`+"\n", i)
				fmt.Fprintf(&want, `{"id":%d,"verdict":"allowed","egress":{"verdict":"allowed","reason":"default"},"ingress":{"verdict":"allowed","reason":"allowed","rule":"NetworkPolicy shop/web ingress[0]"}}`+"\n", i)
			case 1:
				fmt.Fprintf(&body, `{"id":"%d","from":"shop/pod-2-20","to":"shop/pod-1-10","port":9,"protocol":"UDP"}`+"\n", i)
				fmt.Fprintf(&want, `{"id":"%d","verdict":"denied","egress":{"verdict":"allowed","reason":"default"},"ingress":{"verdict":"denied","reason":"isolated"}}`+"\n", i)
			case 2:
				fmt.Fprintf(&body, "nonsense\n")
				fmt.Fprintf(&want, `{"error":"not valid JSON at byte 2: invalid character 'o' in literal null (expecting 'u')"}`+"\n")
			case 3:
				fmt.Fprintf(&body, `{"id":%d,"from":"shop/pod-2-20","to":"shop/pod-1-10"}`+"\n", i)
				fmt.Fprintf(&want, `{"id":%d,"error":"the port is missing: want 80, 80/tcp, 53/udp, a named port like http, or icmp"}`+"\n", i)
			}
		}
		code, got := w.request("POST", "/v1/policy/trace?batch=1", strings.NewReader(body.String()))
		if code != 200 || got != want.String() {
			t.Errorf("%d:\n%s", code, got[:min(len(got), 2000)])
		}
		code, got = w.get("/v1/policy")
		for _, has := range []string{`"kind": "PolicyList"`, `"name": "bad"`, `"refused": true`, "ports are 1 to 65535", `"selects": "pods(own cluster, in shop, app=app5)"`} {
			if code != 200 || !strings.Contains(got, has) {
				t.Errorf("the list lacks %q: %d\n%s", has, code, got)
			}
		}
	})
}
