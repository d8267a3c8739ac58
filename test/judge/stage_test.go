package judge

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

func TestMain(m *testing.M) {
	lab.Janitor()
	lab.Workload()
	os.Exit(m.Run())
}

// stage is a world in a lab: its pods are real, and so is whoever is outside.
type stage struct {
	t       *testing.T
	ctx     context.Context
	cluster *lab.Cluster
	w       *world
	packets []packet
}

// dialer of a pod or of a machine.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// newStage starts a cluster of two nodes with generated pods that serve TCP and
// UDP, and a machine beside it.
func newStage(t *testing.T, r *rand.Rand) *stage {
	t.Helper()
	if testing.Short() {
		t.Skip("clusters of real processes are not short")
	}
	if err := lab.Prerequisites(); err != nil {
		t.Skipf("needs root: %v", err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), 4*time.Minute, errors.New("the test took more than 4 min"))
	t.Cleanup(cancel)
	s := &stage{t: t, ctx: ctx, w: newWorld(r, options{clusters: 1, pods: packetPods})}
	l, err := lab.New(ctx, lab.Options{BinDir: programs(t)})
	s.check(err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	s.cluster, err = l.AddCluster(clusterNames[ownCluster], len(s.w.nodes))
	s.check(err)
	for _, ns := range s.w.namespaces {
		s.check(s.cluster.Apply("namespace-"+ns.Name, lab.Manifest(namespaceObject(ns))))
	}
	s.check(s.cluster.Start(ctx))
	dialers, served := s.start(generator{Rand: r})
	for _, from := range s.parties() {
		for _, to := range s.parties() {
			if from.pod == to.pod || from.address.Is4() != to.address.Is4() {
				continue // what a pod says to itself is not for policies
			}
			for _, port := range served[to.address] {
				for _, proto := range []clustermesh.Protocol{clustermesh.TCP, clustermesh.UDP} {
					s.packets = append(s.packets, packet{query{from, to, proto, port}, dialers[from.address].ask})
				}
			}
		}
	}
	return s
}

func (s *stage) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// start makes the pods and the machine outside, each with its servers.
func (s *stage) start(g generator) (map[netip.Addr]dialer, map[netip.Addr][]uint16) {
	s.t.Helper()
	dialers, served := map[netip.Addr]dialer{}, map[netip.Addr][]uint16{}
	outside, err := s.cluster.AddOutsider("outside")
	s.check(err)
	const outsidePort = 8080
	_, err = outside.Exec("serve", nil, lab.ServeArgv("outside", outsidePort)...)
	s.check(err)
	s.w.outside = outside.Addresses
	for _, a := range outside.Addresses {
		dialers[a], served[a] = outside.Dial, []uint16{outsidePort}
	}
	for i, p := range s.w.pods {
		node := s.cluster.Nodes[i%len(s.cluster.Nodes)]
		ports := g.servedPorts(p)
		real, err := node.AddPod(s.ctx, lab.PodSpec{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, Named: p.ports, Argv: lab.ServeArgv(p.Name, int(ports[0]))})
		s.check(err)
		for _, port := range ports[1:] {
			_, err := real.Exec(fmt.Sprintf("%s-%d", p.Name, port), nil, lab.ServeArgv(p.Name, int(port))...)
			s.check(err)
		}
		p.addresses = real.Addresses
		for _, a := range p.addresses {
			dialers[a], served[a] = real.Dial, ports
			via := node.Underlay()
			if a.Is6() {
				via = node.Underlay6()
			}
			_, err := outside.Run(s.ctx, "ip", "route", "add", a.String(), "via", via.String())
			s.check(err)
		}
	}
	return dialers, served
}

// parties are all ends there are.
func (s *stage) parties() []party {
	var out []party
	for _, p := range s.w.pods {
		for _, a := range p.addresses {
			out = append(out, party{p, a})
		}
	}
	for _, a := range s.w.outside {
		out = append(out, party{address: a})
	}
	return out
}

// networks for blocks of addresses: all, and around each end, some of the others
// in them.
func (s *stage) networks() []string {
	out := []string{"0.0.0.0/0", "::/0", "192.0.2.0/24", "2001:db8::/32"}
	seen := map[string]bool{}
	for _, p := range s.parties() {
		bits := []int{8, 16, 24, 30, 32}
		if p.address.Is6() {
			bits = []int{8, 32, 64, 126, 128}
		}
		for _, b := range bits {
			prefix := netip.PrefixFrom(p.address, b).Masked().String()
			if !seen[prefix] {
				seen[prefix] = true
				out = append(out, prefix)
			}
		}
	}
	return out
}

// apply makes the policies of w the cluster's, and waits until both nodes have
// them, and no others, in their tables.
func (s *stage) apply(w *world) {
	s.t.Helper()
	want := map[string]bool{}
	for _, p := range w.policies {
		want[p.Namespace+"/"+p.Name] = true
	}
	for _, p := range w.clusterPolicies {
		want["/"+p.Name] = true
	}
	s.check(s.cluster.Apply("policies", w.manifest()))
	for _, n := range s.cluster.Nodes {
		s.await(20*time.Second, n.Name+" has the policies", func() error {
			var list trace.PolicyList
			if err := n.GetJSON(s.ctx, "/v1/policy", &list); err != nil {
				return err
			}
			have := map[string]bool{}
			for _, p := range list.Items {
				have[p.Namespace+"/"+p.Name] = true
			}
			if !maps.Equal(have, want) {
				status, err := s.cluster.Status(s.ctx)
				return fmt.Errorf("it has %v, not %v; problems: %v (%v)", have, want, status.GetProblems(), err)
			}
			return s.atRest(n)
		})
	}
}

// atRest: what a node wants in its tables is there.
func (s *stage) atRest(n *lab.Node) error {
	for _, table := range agent.TableNames() {
		is, err := n.Get(s.ctx, "/v1/tables/"+table)
		if err != nil {
			return err
		}
		wanted, err := n.Get(s.ctx, "/v1/tables/"+table+"?wanted=true")
		if err != nil {
			return err
		}
		if string(is) != string(wanted) {
			return fmt.Errorf("table %s is not yet as wanted", table)
		}
	}
	return nil
}

func (s *stage) await(limit time.Duration, what string, done func() error) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ; <-tick.C {
		err := done()
		if err == nil {
			return
		}
		if time.Since(begin) > limit {
			s.t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
	}
}

// tables of all nodes, for whoever has to look into a difference.
func (s *stage) tables() string {
	out := ""
	for _, n := range s.cluster.Nodes {
		for _, table := range agent.TableNames() {
			b, err := n.Get(s.ctx, "/v1/tables/"+table)
			out += fmt.Sprintf("%s, table %s (%v):\n%s", n.Name, table, err, b)
		}
	}
	return out
}

// ask opens a connection, says a line and waits for one.
func (d dialer) ask(ctx context.Context, network, addr string) error {
	conn, err := d(ctx, network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}

func mustParse(b []byte, v any) {
	if err := json.Unmarshal(b, v); err != nil {
		panic(err)
	}
}

// programs builds what a lab runs.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/tombolo-apiserver", "./cmd/tombolo-agent", "./cmd/tombolo-cni")
	cmd.Dir, cmd.Env = filepath.Join("..", ".."), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	return dir
}
