package agent_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
)

type fakePods struct {
	added     []agent.PodRequest
	collected []agent.CollectRequest
	notReady  error
}

func (p *fakePods) Ready() error { return p.notReady }
func (p *fakePods) Collect(_ context.Context, r agent.CollectRequest) error {
	p.collected = append(p.collected, r)
	return nil
}

func (p *fakePods) Add(_ context.Context, r agent.PodRequest) (agent.PodResult, error) {
	p.added = append(p.added, r)
	return agent.PodResult{IfName: r.IfName, MTU: 1420, IPs: []agent.PodIP{{Address: netip.MustParsePrefix("10.1.1.20/32")}}}, nil
}
func (p *fakePods) Del(context.Context, agent.PodRequest) error { return nil }
func (p *fakePods) Check(context.Context, agent.PodRequest) error {
	return errors.New("the veth of pod shop/p is gone\x1b[2J")
}
func (p *fakePods) List(context.Context) ([]agent.LocalPod, error) { return nil, nil }

func TestAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Pods = &fakePods{}
		w.start()
		defer w.stop()
		for _, c := range []struct {
			method, path, body string
			code               int
			has                []string
		}{
			{"GET", "/v1/status", "", 200, []string{`"apiVersion": "tombolo.io/v1"`, `"kind": "AgentStatus"`, `"name": "gcp"`, `"synced": true`, `"problems": []`}},
			{"GET", "/v1/tables", "", 200, []string{`"kind": "TableList"`, `"name": "slots"`}},
			{"GET", "/v1/tables/ips", "", 200, []string{"10.2.1.10 identity=2:5 node=1 flags=encrypted\n"}},
			{"GET", "/v1/tables/ips?wanted=true", "", 200, []string{"10.2.1.10 identity=2:5 node=1 flags=encrypted\n"}},
			{"GET", "/v1/tables/colour", "", 404, []string{`no table \"colour\"`, "services"}},
			{"GET", "/v1/services", "", 200, []string{`"kind": "ServiceList"`, "172.20.1.1:80/tcp", `"backends": 4`}},
			{"GET", "/v1/services/shop/checkout", "", 200, []string{`"kind": "ServiceExplanation"`, "10.2.1.10:8080", `"inKernel": true`, "all clusters are equal"}},
			{"GET", "/v1/services/shop/none", "", 404, []string{"no such service"}},
			{"POST", "/v1/pods/add", `{"name":"p","ifName":"eth0"}`, 200, []string{`"mtu": 1420`, "10.1.1.20/32"}},
			{"POST", "/v1/pods/add", `{`, 400, []string{"pod request"}},
			{"POST", "/v1/pods/check", `{}`, 500, []string{`is gone\\u001b[2J`}},
			{"POST", "/v1/pods/del", `{}`, 200, nil},
			{"POST", "/v1/pods/gc", `{"network":"tombolo","valid":[{"containerID":"c1","ifName":"eth0"}]}`, 200, nil},
			{"GET", "/v1/pods/ready", "", 200, []string{`"kind": "Ready"`}},
			{"GET", "/v1/pods", "", 200, []string{`"items": []`}},
			{"POST", "/v1/resync", "", 202, nil},
			{"GET", "/metrics", "", 200, []string{`tombolo_agent_table_rows_wanted{table="slots"} 4`, `tombolo_agent_cluster_synced{cluster="gcp"} 1`, "tombolo_agent_origin_to_kernel_seconds_count"}},
		} {
			code, body := w.request(c.method, c.path, bytes.NewBufferString(c.body))
			if code != c.code {
				t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, code, c.code, body)
			}
			for _, has := range c.has {
				if !strings.Contains(body, has) {
					t.Errorf("%s %s lacks %q:\n%s", c.method, c.path, has, body)
				}
			}
		}
	})
}

func TestConfigMistakes(t *testing.T) {
	mesh := agenttest.NewMesh()
	for _, c := range []struct {
		cfg    agent.Config
		tables agent.Tables
		want   string
	}{
		{agent.Config{}, agent.NewFakes(), "Connector"},
		{agent.Config{Connector: mesh}, agent.NewFakes(), "Cluster"},
		{agent.Config{Connector: mesh, Cluster: "a", Node: "n", ClusterID: 4096}, agent.NewFakes(), "1–4095"},
		{agent.Config{Connector: mesh, Cluster: "a", Node: "n", ClusterID: 1}, agent.Tables{}, "Config is missing"},
	} {
		if _, err := agent.New(c.cfg, c.tables); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want something about %s", err, c.want)
		}
	}
}
