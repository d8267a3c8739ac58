package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// must and noError keep the scenarios readable: what fails, ends the test.
func must[V any](v V, err error) func(*testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var binaries struct {
	once sync.Once
	dir  string
	err  error
}

// binDir builds the programs once for all tests of this process.
func binDir(t *testing.T) string {
	t.Helper()
	binaries.once.Do(func() {
		// One folder per user, rebuilt by the compiler's cache when something
		// changed: a second run of the tests takes no time here.
		dir, err := os.MkdirTemp("", "lab-bin-")
		if err != nil {
			binaries.err = err
			return
		}
		binaries.dir = dir
		atExit = append(atExit, func() { os.RemoveAll(dir) })
		cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/tombolo-apiserver", "./cmd/tombolo-agent", "./cmd/tombolo-cni")
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			binaries.err = fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	})
	if binaries.err != nil {
		t.Fatal(binaries.err)
	}
	return binaries.dir
}

// atExit runs after all tests.
var atExit []func()

// slots bounds how many whole meshes run at once: they are many processes.
var slots = make(chan struct{}, 2)

// rig is two joined clusters with a service "checkout" in both.
type rig struct {
	*Lab
	t       *testing.T
	ctx     context.Context
	a, b    *Cluster // aws, gcp
	servers map[*Cluster][]*Pod
	client  *Pod // in a, on its first node
}

const (
	checkout4, checkout6 = "172.20.0.10", "fd00:172:20::10"
	checkoutPort         = 8080
)

// rigOptions shape a rig.
type rigOptions struct {
	nodes    int  // per cluster; 0 = 1
	unjoined bool // the clusters run and do not know each other
	bare     bool // no service, no pods
	lab      Options
}

// newEmptyRig is a lab and what tests need around it.
func newEmptyRig(t *testing.T, o Options) *rig {
	t.Helper()
	if err := Prerequisites(); err != nil {
		t.Skipf("needs root: %v", err)
	}
	if testing.Short() {
		t.Skip("whole meshes of processes are not short")
	}
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	o.BinDir = binDir(t)
	ctx, cancel := context.WithTimeoutCause(context.Background(), 100*time.Second, errors.New("the test took more than 100 s"))
	t.Cleanup(cancel)
	r := &rig{t: t, ctx: ctx, servers: map[*Cluster][]*Pod{}}
	r.Lab = testLab(t, o)
	t.Cleanup(r.explain)
	return r
}

// newMesh starts a rig. On failure of the test its logs and tables are kept.
func newMesh(t *testing.T, o rigOptions) *rig {
	t.Helper()
	r := newEmptyRig(t, o.lab)
	ctx := r.ctx
	r.a = must(r.AddCluster("aws", max(1, o.nodes)))(t)
	r.b = must(r.AddCluster("gcp", max(1, o.nodes)))(t)
	errs := make(chan error, 2)
	for _, c := range r.Clusters() {
		go func() { errs <- c.Start(ctx) }()
	}
	noError(t, errors.Join(<-errs, <-errs))
	if !o.unjoined {
		_, _, err := r.b.Join(ctx, r.a)
		noError(t, err)
	}
	if !o.bare {
		r.addCheckout(o.unjoined)
	}
	if !o.unjoined {
		r.awaitTunnels()
	}
	return r
}

// awaitTunnels waits until every node reaches every node of other clusters
// through the tunnel, and nobody is judged down. A first handshake that came
// before the other side knew of the peer is repeated by WireGuard after 5 s.
func (r *rig) awaitTunnels() {
	r.t.Helper()
	begin := time.Now()
	defer func() { r.t.Logf("tunnels are up after %.2f s more", time.Since(begin).Seconds()) }()
	for _, c := range r.Clusters() {
		for _, other := range r.Clusters() {
			for _, from := range c.Nodes {
				for _, to := range other.Nodes {
					if c == other {
						continue
					}
					target := to.PodPrefixes()[0].Addr().Next().String()
					r.eventually(15*time.Second, fmt.Sprintf("%s/%s reaches %s/%s through the tunnel", c.Name, from.Name, other.Name, to.Name), func() error {
						_, err := from.host.run(r.ctx, nil, "", "ping", "-n", "-q", "-c", "1", "-W", "1", target)
						return err
					})
				}
			}
		}
	}
	r.awaitUp()
}

func (r *rig) addCheckout(alone bool) {
	r.t.Helper()
	for _, c := range r.Clusters() {
		noError(r.t, c.Apply("service-checkout", checkoutObject(nil)))
		for i := range 2 {
			r.addServer(c, fmt.Sprintf("checkout-%d", i+1), i)
		}
	}
	r.client = must(r.a.Nodes[0].AddPod(r.ctx, PodSpec{Name: "client"}))(r.t)
	want := 4
	if alone {
		want = 2
	}
	for _, c := range r.Clusters() {
		for _, n := range c.Nodes {
			r.awaitBackends(n, want)
		}
	}
}

func (r *rig) addServer(c *Cluster, name string, node int) *Pod {
	r.t.Helper()
	p := must(c.Nodes[node%len(c.Nodes)].AddPod(r.ctx, PodSpec{Name: name, Labels: map[string]string{"app": "checkout"},
		Port: checkoutPort, Argv: ServeArgv(c.Name+"/"+name, checkoutPort)}))(r.t)
	r.servers[c] = append(r.servers[c], p)
	return p
}

// checkoutObject is the service over TCP and UDP, global, with more annotations.
func checkoutObject(annotations map[string]string) string {
	all := map[string]string{"tombolo.io/global": "true"}
	for k, v := range annotations {
		all["tombolo.io/"+k] = v
	}
	o := ServiceObject(ServiceSpec{Name: "checkout", App: "checkout", ClusterIPs: []string{checkout4, checkout6},
		Port: 80, TargetPort: checkoutPort, Annotations: all})
	spec := o["spec"].(Object)
	spec["ports"] = append(spec["ports"].([]Object), Object{"name": "query", "port": 53, "targetPort": checkoutPort, "protocol": "UDP"})
	return Manifest(o)
}

// affinity sets cluster c's service and waits until a client pod there agrees.
func (r *rig) affinity(c *Cluster, value string) {
	r.t.Helper()
	noError(r.t, c.Apply("service-checkout", checkoutObject(map[string]string{"affinity": value})))
	for _, n := range c.Nodes {
		r.eventually(10*time.Second, n.cluster.Name+"/"+n.Name+": affinity "+value, func() error {
			var e agent.ServiceExplanation
			if err := n.GetJSON(r.ctx, "/v1/services/default/checkout", &e); err != nil {
				return err
			}
			for _, p := range e.Ports {
				if !p.InKernel {
					return fmt.Errorf("port %s is not in the kernel yet", p.Name)
				}
			}
			if e.Affinity != value {
				return fmt.Errorf("affinity is %q", e.Affinity)
			}
			return nil
		})
	}
}

// awaitBackends waits until a node's kernel has that many backends of checkout,
// per family and port.
func (r *rig) awaitBackends(n *Node, want int) {
	r.t.Helper()
	r.eventually(20*time.Second, fmt.Sprintf("%s/%s: %d backends", n.cluster.Name, n.Name, want), func() error {
		text, err := n.Get(r.ctx, "/v1/tables/slots")
		if err != nil {
			return err
		}
		four, six := 0, 0
		for line := range strings.Lines(string(text)) {
			switch {
			case strings.Contains(line, fmt.Sprintf("]:%d", checkoutPort)):
				six++
			case strings.Contains(line, fmt.Sprintf(":%d", checkoutPort)):
				four++
			}
		}
		if four != 2*want || six != 2*want { // a TCP and a UDP port
			return fmt.Errorf("it has %d over IPv4, %d over IPv6, of two ports each", four, six)
		}
		return nil
	})
}

// eventually polls until cond is nil.
func (r *rig) eventually(limit time.Duration, what string, cond func() error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeoutCause(r.ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	if err := await(ctx, what, nil, cond); err != nil {
		r.t.Fatal(err)
	}
}

// in runs a subtest whose failures end it alone.
func (r *rig) in(t *testing.T) *rig {
	sub := *r
	sub.t = t
	return &sub
}

// agentStatus of a node.
func (r *rig) agentStatus(n *Node) agent.Status {
	r.t.Helper()
	var s agent.Status
	noError(r.t, n.GetJSON(r.ctx, "/v1/status", &s))
	return s
}

// clusterStatus is what a node's agent says of a cluster; nil = nothing.
func (r *rig) clusterStatus(n *Node, name string) *agent.ClusterStatus {
	r.t.Helper()
	s := r.agentStatus(n)
	for i := range s.Clusters {
		if s.Clusters[i].Name == name {
			return &s.Clusters[i]
		}
	}
	return nil
}

// table is a node's dump of a table.
func (r *rig) table(n *Node, name string) string {
	r.t.Helper()
	return string(must(n.Get(r.ctx, "/v1/tables/"+name))(r.t))
}

// tables are all of a node's tables.
func (r *rig) tables(n *Node) map[string]string {
	r.t.Helper()
	m := map[string]string{}
	for _, name := range agent.TableNames() {
		m[name] = r.table(n, name)
	}
	return m
}

// awaitProblem waits for a problem of the mesh API server that holds all words,
// and checks that it says why and what to do.
func (r *rig) awaitProblem(c *Cluster, words ...string) *pb.Problem {
	r.t.Helper()
	var found *pb.Problem
	r.eventually(10*time.Second, fmt.Sprintf("%s names a problem with %q", c.Name, words), func() error {
		st, err := c.Status(r.ctx)
		if err != nil {
			return err
		}
		for _, p := range st.Problems {
			if holds(p.What+" "+p.Why+" "+p.Fix+" "+p.Object, words) {
				found = p
				return nil
			}
		}
		return fmt.Errorf("its problems: %v", st.Problems)
	})
	if found.What == "" || found.Why == "" || found.Fix == "" {
		r.t.Errorf("a problem that does not say what, why and what to do: %v", found)
	}
	r.t.Logf("problem: %s: %s; fix: %s (%s)", found.What, found.Why, found.Fix, found.Object)
	return found
}

func holds(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			return false
		}
	}
	return true
}

// wantError checks that err says all words.
func (r *rig) wantError(err error, words ...string) {
	r.t.Helper()
	switch {
	case err == nil:
		r.t.Errorf("no error; wanted one that says %q", words)
	case !holds(err.Error(), words):
		r.t.Errorf("error %q does not say %q", err, words)
	default:
		r.t.Logf("refused: %v", err)
	}
}

// ask runs a client in the pod for n requests and returns them.
func (r *rig) ask(p *Pod, n int, o ClientOptions) []Result {
	r.t.Helper()
	return r.asked(p.Client, n, o)
}

func (r *rig) asked(start func(string, ClientOptions) (*Client, error), n int, o ClientOptions) []Result {
	r.t.Helper()
	if o.Interval == 0 {
		o.Interval = 5 * time.Millisecond
	}
	c := must(start("client-once", o))(r.t)
	defer c.Process.Kill()
	return must(c.AwaitMore(r.ctx, time.Time{}, n))(r.t)
}

// allOK checks that all requests were answered, by that cluster ("" = any).
func (r *rig) allOK(results []Result, cluster string) {
	r.t.Helper()
	if f := Failed(results); f > 0 {
		r.t.Errorf("%d of %d requests failed: %s", f, len(results), firstError(results))
	}
	if shares := Shares(results); cluster != "" && shares[cluster] != len(results) {
		r.t.Errorf("of %d requests, wanted all answered by %s: %v", len(results), cluster, shares)
	}
}

// awaitPath waits until 20 requests in a row were answered.
func (r *rig) awaitPath(p *Pod, o ClientOptions) {
	r.t.Helper()
	r.eventually(15*time.Second, "20 answers in a row from "+o.Target, func() error {
		if results := r.ask(p, 20, o); Failed(results) > 0 {
			return fmt.Errorf("%d failed: %s", Failed(results), firstError(results))
		}
		return nil
	})
}

func firstError(results []Result) string {
	for _, res := range results {
		if !res.OK() {
			return res.Err
		}
	}
	return ""
}

func tcp(addr string) ClientOptions { return ClientOptions{Target: net.JoinHostPort(addr, "80")} }

// patient gives a lost SYN the time for two retransmissions, so that a busy
// machine is not taken for a broken mesh.
func patient(o ClientOptions) ClientOptions {
	o.Timeout = 4 * time.Second
	return o
}

func udp(addr string) ClientOptions {
	return ClientOptions{Target: net.JoinHostPort(addr, "53"), Network: "udp"}
}

// explain keeps what explains a failure.
func (r *rig) explain() {
	if !r.t.Failed() {
		return
	}
	dir := os.Getenv("TOMBOLO_LAB_LOGS")
	if dir == "" {
		r.t.Log("set TOMBOLO_LAB_LOGS to a folder to keep logs and tables of a lab that failed")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	dir = filepath.Join(dir, strings.ReplaceAll(r.t.Name(), "/", "_"))
	if err := r.Bundle(ctx, dir); err != nil {
		r.t.Log(err)
	}
	r.t.Logf("logs and tables are in %s", dir)
}
