package agent_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func TestAgentWritesWhatTheClustersSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		if got := only4(w.kernel(agent.TableIPs)); got != ipsAWS+ipsGCP+ipsUnderlay {
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
				if got := only4(w.kernel(agent.TableIPs)); got != ipsAWS+ipsUnderlay {
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
