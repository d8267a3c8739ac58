package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/agenttest"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	aws = agenttest.Facts{Name: "aws", ID: 1}
	gcp = agenttest.Facts{Name: "gcp", ID: 2}
)

// world is two clusters with one global service, and an agent on aws-n1.
type world struct {
	t      testing.TB
	mesh   *agenttest.Mesh
	tables agent.Tables
	cfg    agent.Config
	a      *agent.Agent
	stop   func()
}

const (
	export = clustermesh.ScopeExport
	local  = clustermesh.ScopeLocal
)

func newWorld(t testing.TB) *world {
	w := &world{t: t, mesh: agenttest.NewMesh(), tables: agent.NewFakes()}
	w.cfg = agent.Config{
		Cluster: "aws", ClusterID: 1, Node: "aws-n1", Connector: w.mesh,
		OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}, Resync: -1,
	}
	for _, f := range []agenttest.Facts{aws, gcp} {
		w.mesh.SetStore(f.Name, kvstore.NewMemory(kvstore.MemoryOptions{StoreID: uint64(f.ID)}))
		w.mesh.Put(t, f.Name, export,
			f.Node(1), f.Node(2), f.Identity(5), f.Address(1, 10, 5), f.Address(2, 10, 5),
			f.Service("checkout", 1), f.Slice("checkout", [2]int{1, 10}, [2]int{2, 10}), f.Cluster(uint64(f.ID)*100))
	}
	w.mesh.Put(t, "aws", local, gcp.Peer())
	return w
}

// start runs the agent and waits until nothing more happens.
func (w *world) start() {
	w.t.Helper()
	a, err := agent.New(w.cfg, w.tables)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	w.a = a
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	synctest.Wait()
}

func (w *world) expect(table, want string) {
	w.t.Helper()
	synctest.Wait()
	got, err := w.a.Dump(table)
	if err != nil {
		w.t.Fatal(err)
	}
	if got != want {
		w.t.Fatalf("table %s:\n%swant\n%s", table, got, want)
	}
	if real := w.kernel(table); real != want {
		w.t.Fatalf("table %s in the kernel:\n%swant\n%s", table, real, want)
	}
}

func rowsOf[K comparable, V comparable](text agent.Text[K, V], t agent.Table[K, V]) string {
	rows := map[K]V{}
	for k, v := range t.Dump() {
		rows[k] = v
	}
	return text.Print(rows)
}

// kernel is a table as it really is, as text.
func (w *world) kernel(table string) string {
	switch table {
	case agent.TablePeers:
		return rowsOf(agent.PeerText, w.tables.Peers)
	case agent.TableRoutes:
		return rowsOf(agent.RouteText, w.tables.Routes)
	case agent.TableIPPrefixes:
		return rowsOf(agent.IPPrefixText, w.tables.IPPrefixes)
	case agent.TableIPs:
		return rowsOf(agent.IPText, w.tables.IPs)
	case agent.TableEndpoints:
		return rowsOf(agent.EndpointText, w.tables.Endpoints)
	case agent.TableSlots:
		return rowsOf(agent.SlotText, w.tables.Slots)
	case agent.TableServices:
		return rowsOf(agent.ServiceText, w.tables.Services)
	case agent.TableNodeHealth:
		return rowsOf(agent.NodeHealthText, w.tables.NodeHealth)
	case agent.TableClusterHealth:
		return rowsOf(agent.ClusterHealthText, w.tables.ClusterHealth)
	}
	return ""
}

func (w *world) all() string {
	var b strings.Builder
	for _, name := range agent.TableNames() {
		b.WriteString("# " + name + "\n" + w.kernel(name))
	}
	return b.String()
}

func (w *world) get(path string) (int, string) {
	return w.request("GET", path, nil)
}

func (w *world) request(method, path string, body io.Reader) (int, string) {
	r := httptest.NewRecorder()
	w.a.Handler().ServeHTTP(r, httptest.NewRequest(method, path, body))
	return r.Code, r.Body.String()
}

const (
	routesBoth = `10.1.2.0/24 direct via=192.168.1.2 src=10.1.1.1
10.2.0.0/16 blackhole
10.2.1.0/24 blackhole
10.2.1.0/24 tunnel src=10.1.1.1 mtu=1420
10.2.2.0/24 blackhole
10.2.2.0/24 tunnel src=10.1.1.1 mtu=1420
`
	ipsAWS = `10.1.1.1 identity=0:1 node=1
10.1.1.10 identity=1:5 node=1
10.1.2.1 identity=0:3 node=2
10.1.2.10 identity=1:5 node=2
`
	ipsGCP = `10.2.1.1 identity=0:3 node=1
10.2.1.10 identity=2:5 node=1
10.2.2.1 identity=0:3 node=2
10.2.2.10 identity=2:5 node=2
`
	prefixes4 = `10.1.1.0/24 identity=1:0 node=1
10.1.2.0/24 identity=1:0 node=2
10.2.1.0/24 identity=2:0 node=1
10.2.2.0/24 identity=2:0 node=2
`
)

// only4 leaves the IPv6 lines of a dump out.
func only4(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if first, _, _ := strings.Cut(line, " "); strings.Count(first, ":") < 2 {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestAgentWritesWhatTheClustersSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		if got := only4(w.kernel(agent.TableIPs)); got != ipsAWS+ipsGCP {
			t.Errorf("ips:\n%s", got)
		}
		if got := only4(w.kernel(agent.TableIPPrefixes)); got != prefixes4 {
			t.Errorf("prefixes:\n%s", got)
		}
		// The v6 prefixes of a neighbour have no v6 underlay address: then all of
		// the node goes by WireGuard.
		if got := w.kernel(agent.TablePeers); strings.Count(got, "\n") != 3 || !strings.Contains(got, "allowed=10.2.1.0/24,fd00:2:1::/64\n") {
			t.Errorf("peers:\n%s", got)
		}
		id := agent.ServiceID(clustermesh.ServiceName{Namespace: "shop", Name: "checkout"}, "http", clustermesh.TCP, false)
		services := w.kernel(agent.TableServices)
		if !strings.HasPrefix(services, "172.20.1.1:80/tcp id=") || !strings.HasSuffix(services, "[1*1#2,2*1#2]\n") {
			t.Errorf("services:\n%s (id %016x)", services, id)
		}
		if got := w.kernel(agent.TableSlots); strings.Count(got, "\n") != 4 || !strings.Contains(got, "/2/1 10.2.2.10:8080 cluster=2 node=2\n") {
			t.Errorf("slots:\n%s", got)
		}
		if !w.a.Ready() {
			t.Error("not ready")
		}
		if code, body := w.get("/readyz"); code != http.StatusOK {
			t.Errorf("readyz: %d %s", code, body)
		}
	})
}

func TestDirectRoutesOnOneL2(t *testing.T) {
	own, other := aws.Node(1), aws.Node(2)
	own.PodPrefixes, other.PodPrefixes = own.PodPrefixes[:1], other.PodPrefixes[:1]
	far := []*clustermesh.Node{gcp.Node(1), gcp.Node(2)}
	for _, n := range far {
		n.PodPrefixes = n.PodPrefixes[:1]
	}
	_, routes, problems := agent.Plan(agent.PlanInput{
		Own: own, OwnNodes: []*clustermesh.Node{own, other}, OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		Remote: []agent.PlanCluster{{Name: "gcp", PodPrefixes: gcp.Prefixes()[:1], Nodes: far}},
	})
	if got := agent.RouteText.Print(routes); got != routesBoth || len(problems) > 0 {
		t.Errorf("routes:\n%swant\n%s%v", got, routesBoth, problems)
	}
}

func TestSilenceIsNotDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		before := w.all()
		w.mesh.Cut("gcp", errors.New("dark"))
		w.mesh.Cut("aws", errors.New("dark"))
		time.Sleep(time.Hour)
		if got := w.all(); got != before {
			t.Errorf("after an hour without a control plane:\n%s", got)
		}
		w.stop()
		w.start() // a fresh agent, the kernel as it was, nobody in reach
		defer func() { w.stop() }()
		time.Sleep(time.Hour)
		if got := w.all(); got != before {
			t.Errorf("after a restart without a control plane:\n%s", got)
		}
		if w.a.Ready() {
			t.Error("ready without the own cluster")
		}
		// The own cluster comes back, the peer does not: its backends stay.
		w.mesh.Cut("aws", nil)
		time.Sleep(time.Minute)
		if got := w.all(); got != before {
			t.Errorf("with the own cluster back:\n%swant\n%s", got, before)
		}
		var s agent.Status
		_, body := w.get("/v1/status")
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			t.Fatal(err)
		}
		if len(s.Problems) != 1 || !strings.Contains(s.Problems[0].What, "gcp is not in reach") {
			t.Errorf("problems: %+v", s.Problems)
		}
		// While the agent was away a node of gcp left.
		w.mesh.Delete(t, "gcp", export, gcp.Node(2), gcp.Address(2, 10, 5))
		w.mesh.Put(t, "gcp", export, gcp.Slice("checkout", [2]int{1, 10}))
		w.mesh.Cut("gcp", nil)
		time.Sleep(time.Minute)
		if got := w.kernel(agent.TableIPs); strings.Contains(got, "10.2.2.") || !strings.Contains(got, "10.2.1.10") {
			t.Errorf("ips after gcp is back:\n%s", got)
		}
		if got := w.kernel(agent.TableSlots); strings.Count(got, "\n") != 3 {
			t.Errorf("slots after gcp is back:\n%s", got)
		}
	})
}

func TestPeerRemovedTakesItsRows(t *testing.T) {
	for _, how := range []string{"running", "while the agent was away"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.cfg.SnapshotDir = t.TempDir()
				w.start()
				time.Sleep(time.Minute)
				if how != "running" {
					w.stop()
				}
				w.mesh.Delete(t, "aws", local, gcp.Peer())
				if how != "running" {
					w.start()
				}
				defer func() { w.stop() }()
				time.Sleep(time.Minute)
				for _, table := range agent.TableNames() {
					if got := w.kernel(table); strings.Contains(got, "10.2.") || strings.Contains(got, "fd00:2") || strings.Contains(got, "2*1#") {
						t.Errorf("table %s still has rows of gcp:\n%s", table, got)
					}
				}
				if got := only4(w.kernel(agent.TableIPs)); got != ipsAWS {
					t.Errorf("ips:\n%s", got)
				}
				if files, _ := filepath.Glob(filepath.Join(w.cfg.SnapshotDir, "gcp.*")); len(files) > 0 && how == "running" {
					t.Errorf("snapshot left behind: %v", files)
				}
			})
		})
	}
}

func TestSnapshotServesAReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.SnapshotDir = t.TempDir()
		w.start()
		time.Sleep(time.Minute)
		before := w.all()
		w.stop()
		w.tables = agent.NewFakes() // a reboot
		w.mesh.Cut("gcp", errors.New("dark"))
		w.mesh.Cut("aws", errors.New("dark"))
		began := time.Now()
		w.start()
		for w.all() != before && time.Since(began) < 10*time.Second {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("tables after %v:\n%swant\n%s", took, w.all(), before)
		}
		w.stop()

		damage(t, w.cfg.SnapshotDir)
		w.tables = agent.NewFakes()
		w.start()
		defer func() { w.stop() }()
		time.Sleep(time.Minute)
		var s agent.Status
		_, body := w.get("/v1/status")
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(body, "the snapshot of cluster aws (scope local) cannot be used") || !strings.Contains(body, "checksum") {
			t.Errorf("status does not name the damaged snapshot: %s", body)
		}
		if aside, _ := filepath.Glob(filepath.Join(w.cfg.SnapshotDir, "*.bad")); len(aside) == 0 {
			t.Error("the damaged file was not set aside")
		}
		w.mesh.Cut("gcp", nil)
		w.mesh.Cut("aws", nil)
		time.Sleep(time.Minute)
		if got := w.all(); got != before {
			t.Errorf("after all:\n%s", got)
		}
	})
}

func damage(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.snapshot"))
	if err != nil || len(files) != 3 {
		t.Fatalf("snapshots: %v %v", files, err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		raw[len(raw)/2] ^= 0x40
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// reachable is a Prober for which some addresses are dark.
type reachable struct {
	mu   sync.Mutex
	dark map[netip.Addr]bool
}

func (r *reachable) Probe(ctx context.Context, from, to netip.Addr, timeout time.Duration) error {
	r.mu.Lock()
	dark := r.dark[to]
	r.mu.Unlock()
	if !dark {
		return nil
	}
	select {
	case <-ctx.Done():
	case <-time.After(timeout):
	}
	return errors.New("no answer")
}

func (r *reachable) set(dark bool, addrs ...netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range addrs {
		r.dark[a] = dark
	}
}

func TestHealthRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := &reachable{dark: map[netip.Addr]bool{}}
		w.cfg.Prober = p
		w.start()
		time.Sleep(5 * time.Second)
		w.expect(agent.TableNodeHealth, "")
		one, two := gcp.Node(1).TunnelAddresses, gcp.Node(2).TunnelAddresses
		p.set(true, one[0])
		time.Sleep(5 * time.Second)
		w.expect(agent.TableNodeHealth, "") // its other address answers
		p.set(true, one...)
		time.Sleep(1500 * time.Millisecond)
		if got := w.kernel(agent.TableNodeHealth); !strings.HasPrefix(got, "2/1 since=") {
			t.Errorf("node_health after 1.5 s: %q", got)
		}
		w.expect(agent.TableClusterHealth, "")
		p.set(true, two...)
		time.Sleep(1500 * time.Millisecond)
		if got := w.kernel(agent.TableClusterHealth); !strings.HasPrefix(got, "2 since=") {
			t.Errorf("cluster_health: %q", got)
		}
		before := w.all()
		w.stop() // verdicts outlive the agent
		if got := w.all(); got != before {
			t.Errorf("stopping changed something:\n%s", got)
		}
		w.start()
		defer func() { w.stop() }()
		if got := w.all(); got != before {
			t.Errorf("restarting changed something:\n%s", got)
		}
		time.Sleep(10 * time.Second)
		if got := w.all(); got != before {
			t.Errorf("a while after the restart:\n%s", got)
		}
		p.set(false, two...)
		time.Sleep(1500 * time.Millisecond)
		w.expect(agent.TableClusterHealth, "")
		if got := w.kernel(agent.TableNodeHealth); !strings.HasPrefix(got, "2/1 since=") || strings.Contains(got, "2/2") {
			t.Errorf("node_health: %q", got)
		}
	})
}

func TestLocalPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pod := agent.LocalPod{UID: "u1", Namespace: "shop", Name: "p", Addresses: []netip.Addr{aws.Pod(1, 20)}, IfIndex: 7,
			PodMAC: agent.MAC{2, 0, 0, 0, 0, 1}, HostMAC: agent.MAC{2, 0, 0, 0, 0, 2}}
		w.start()
		w.a.SetPods([]agent.LocalPod{pod})
		w.expect(agent.TableEndpoints, "10.1.1.20 if=7 pod=02:00:00:00:00:01 host=02:00:00:00:00:02 identity=1:0\n")
		if got := w.kernel(agent.TableRoutes); !strings.Contains(got, "10.1.1.20/32 pod if=7\n") {
			t.Errorf("routes:\n%s", got)
		}
		w.mesh.Put(t, "aws", export, aws.Address(1, 20, 9))
		w.expect(agent.TableEndpoints, "10.1.1.20 if=7 pod=02:00:00:00:00:01 host=02:00:00:00:00:02 identity=1:9\n")
		w.stop()
		w.start() // until the pods are told again, their rows stay
		defer func() { w.stop() }()
		time.Sleep(time.Minute)
		w.expect(agent.TableEndpoints, "10.1.1.20 if=7 pod=02:00:00:00:00:01 host=02:00:00:00:00:02 identity=1:9\n")
		w.a.SetPods(nil)
		w.expect(agent.TableEndpoints, "")
		if got := w.kernel(agent.TableRoutes); strings.Contains(got, " pod ") {
			t.Errorf("routes:\n%s", got)
		}
	})
}

func TestDriftIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Resync = 30 * time.Second
		w.start()
		defer w.stop()
		before := w.all()
		mustDo(t, w.tables.IPs.Delete([]agent.Addr{agent.MakeAddr(gcp.Pod(1, 10))}))
		mustDo(t, w.tables.IPs.Put(map[agent.Addr]agent.IPCacheRow{agent.MakeAddr(gcp.Pod(1, 99)): {Identity: 2<<20 + 1}}))
		w.a.Notify(agent.TableIPs)
		synctest.Wait()
		if got := w.all(); got != before {
			t.Errorf("after Notify:\n%s", got)
		}
		mustDo(t, w.tables.Routes.Delete([]agent.RouteKey{{Prefix: agent.MakePrefix(netip.MustParsePrefix("10.2.0.0/16")), Kind: agent.RouteBlackhole}}))
		time.Sleep(time.Minute)
		if got := w.all(); got != before {
			t.Errorf("after the periodic reading:\n%s", got)
		}
	})
}

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFullTableIsAProblemThatSomeoneSees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.tables.Slots = agent.NewFake[agent.SlotKey, agent.SlotRow](agent.TableSlots, 3)
		w.mesh.Put(t, "aws", export, aws.Service("cart", 2), aws.Slice("cart", [2]int{1, 10}))
		w.start()
		defer w.stop()
		_, body := w.get("/v1/status")
		if !strings.Contains(body, "table slots: ") || !strings.Contains(body, "larger table slots") {
			t.Errorf("status: %s", body)
		}
		// Nothing points at what is not there.
		slots := w.kernel(agent.TableSlots)
		for k, row := range w.tables.Services.Dump() {
			for _, g := range row.Groups {
				for i := range g.Count {
					if _, ok := w.tables.Slots.(*agent.Fake[agent.SlotKey, agent.SlotRow]).Rows()[agent.SlotKey{Service: row.ID, Cluster: g.Cluster, Slot: i}]; !ok {
						t.Errorf("service %v has no slot %d of cluster %d:\n%s", k, i, g.Cluster, slots)
					}
				}
			}
		}
	})
}

type fakePods struct{ added []agent.PodRequest }

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
			{"GET", "/v1/tables/ips", "", 200, []string{"10.2.1.10 identity=2:5 node=1\n"}},
			{"GET", "/v1/tables/ips?wanted=true", "", 200, []string{"10.2.1.10 identity=2:5 node=1\n"}},
			{"GET", "/v1/tables/colour", "", 404, []string{`no table \"colour\"`, "services"}},
			{"GET", "/v1/services", "", 200, []string{`"kind": "ServiceList"`, "172.20.1.1:80/tcp", `"backends": 4`}},
			{"GET", "/v1/services/shop/checkout", "", 200, []string{`"kind": "ServiceExplanation"`, "10.2.1.10:8080", `"inKernel": true`, "all clusters are equal"}},
			{"GET", "/v1/services/shop/none", "", 404, []string{"no such service"}},
			{"POST", "/v1/pods/add", `{"name":"p","ifName":"eth0"}`, 200, []string{`"mtu": 1420`, "10.1.1.20/32"}},
			{"POST", "/v1/pods/add", `{`, 400, []string{"pod request"}},
			{"POST", "/v1/pods/check", `{}`, 500, []string{`is gone\\u001b[2J`}},
			{"POST", "/v1/pods/del", `{}`, 200, nil},
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
		{agent.Config{Connector: mesh, Cluster: "a", Node: "n", ClusterID: 1}, agent.Tables{}, "Peers is missing"},
	} {
		if _, err := agent.New(c.cfg, c.tables); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want something about %s", err, c.want)
		}
	}
}
