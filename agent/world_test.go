package agent_test

import (
	"context"
	"io"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

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
	case agent.TableConfig:
		return rowsOf(agent.ConfigText, w.tables.Config)
	case agent.TablePeers:
		return rowsOf(agent.PeerText, w.tables.Peers)
	case agent.TableRoutes:
		return rowsOf(agent.RouteText, w.tables.Routes)
	case agent.TablePolicy:
		return rowsOf(agent.PolicyText, w.tables.Policy)
	case agent.TableIPPrefixes:
		return rowsOf(agent.IPPrefixText, w.tables.IPPrefixes)
	case agent.TableIPs:
		return rowsOf(agent.IPText, w.tables.IPs)
	case agent.TableClassPrefixes:
		return rowsOf(agent.ClassPrefixText, w.tables.ClassPrefixes)
	case agent.TableClasses:
		return rowsOf(agent.ClassText, w.tables.Classes)
	case agent.TableSubjects:
		return rowsOf(agent.SubjectText, w.tables.Subjects)
	case agent.TableEndpoints:
		return rowsOf(agent.EndpointText, w.tables.Endpoints)
	case agent.TableSourceRanges:
		return rowsOf(agent.RangeText, w.tables.SourceRanges)
	case agent.TableSlots:
		return rowsOf(agent.SlotText, w.tables.Slots)
	case agent.TableMaglev:
		return rowsOf(agent.MaglevText, w.tables.Maglev)
	case agent.TableServices:
		return rowsOf(agent.ServiceText, w.tables.Services)
	case agent.TableNodeHealth:
		return rowsOf(agent.NodeHealthText, w.tables.NodeHealth)
	case agent.TableClusterHealth:
		return rowsOf(agent.ClusterHealthText, w.tables.ClusterHealth)
	}
	w.t.Fatalf("no table %s", table)
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
	routesBoth = `10.1.1.0/24 unreachable
10.1.2.0/24 direct via=192.168.1.2 src=10.1.1.1
10.2.0.0/16 blackhole
10.2.1.0/24 blackhole
10.2.1.0/24 tunnel src=10.1.1.1 mtu=1420
10.2.2.0/24 blackhole
10.2.2.0/24 tunnel src=10.1.1.1 mtu=1420
`
	// The v6 prefixes of the neighbour have no v6 underlay address, so all of it
	// goes by WireGuard.
	ipsAWS = `10.1.1.1 identity=0:1 node=1 flags=tunnel-address
10.1.1.10 identity=1:5 node=1 flags=here
10.1.2.1 identity=0:3 node=2 flags=encrypted
10.1.2.10 identity=1:5 node=2 flags=encrypted
`
	ipsGCP = `10.2.1.1 identity=0:3 node=1 flags=encrypted
10.2.1.10 identity=2:5 node=1 flags=encrypted
10.2.2.1 identity=0:3 node=2 flags=encrypted
10.2.2.10 identity=2:5 node=2 flags=encrypted
`
	ipsUnderlay = `192.168.1.1 identity=0:1 node=1
192.168.1.2 identity=0:3 node=2
`
	prefixes4 = `10.1.1.0/24 identity=1:0 node=1 flags=here
10.1.2.0/24 identity=1:0 node=2 flags=encrypted
10.2.1.0/24 identity=2:0 node=1 flags=encrypted
10.2.2.0/24 identity=2:0 node=2 flags=encrypted
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

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
