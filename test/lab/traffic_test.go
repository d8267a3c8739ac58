package lab

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Every way to call a service, across clusters: TCP and UDP, connected and not,
// both families, from a pod and from the node itself.
func TestTraffic(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	for _, affinity := range []string{"remote", "local", "none"} {
		r.affinity(r.a, affinity)
		for _, family := range []struct{ name, addr string }{{"IPv4", checkout4}, {"IPv6", checkout6}} {
			loose := udp(family.addr)
			loose.Unconnected, loose.Keep = true, true
			fresh := udp(family.addr)
			fresh.Unconnected = true
			keep := tcp(family.addr)
			keep.Keep = true
			for _, way := range []struct {
				name string
				o    ClientOptions
			}{
				{"TCP", tcp(family.addr)}, {"TCP kept", keep},
				{"UDP connected", udp(family.addr)}, {"UDP unconnected", fresh}, {"UDP unconnected kept", loose},
			} {
				for from, start := range map[string]func(string, ClientOptions) (*Client, error){"pod": r.client.Client, "node": r.a.Nodes[1].Client} {
					t.Run(fmt.Sprintf("%s/%s/%s/from %s", affinity, family.name, way.name, from), func(t *testing.T) {
						r := r.in(t)
						results := r.asked(start, 30, way.o)
						want := map[string]string{"remote": "gcp", "local": "aws"}[affinity]
						if lost := Failed(results); way.o.Network == "udp" && lost == 1 {
							// UDP promises nothing, and queues overflow on a busy machine.
							t.Logf("one datagram or its answer was lost: %s", firstError(results))
							results = slices.DeleteFunc(results, func(res Result) bool { return !res.OK() })
						}
						r.allOK(results, want)
						who := map[string]int{}
						for _, res := range results {
							who[res.Who]++
						}
						if kept := way.o.Keep; kept && len(who) != 1 {
							t.Errorf("one connection was answered by %v", who)
						} else if !kept && len(who) < 2 {
							t.Errorf("30 connections were answered by %v alone", who)
						}
					})
				}
			}
		}
	}
}

// Packets on tunnels are lost, doubled, late and out of order: the service keeps
// answering, and a lossy path is not taken for a dead cluster.
func TestBadLinks(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	r.affinity(r.a, "remote")
	tunnels := Fault{Proto: 17, Port: WireGuardPort}
	watch := must(r.client.Client("watch", tcp(checkout4)))(t)
	defer watch.Process.Kill()

	t.Run("loss 5 %", func(t *testing.T) {
		r := r.in(t)
		f := tunnels
		f.Loss, f.Seed = 0.05, 11
		heal := must(r.Inject(f))(t)
		defer heal()
		begin, verdicts, polls := time.Now(), 0, 0
		for time.Since(begin) < 10*time.Second {
			for _, n := range []*Node{r.a.Nodes[0], r.a.Nodes[1], r.b.Nodes[0], r.b.Nodes[1]} {
				polls++
				if rows := r.table(n, "cluster_health"); rows != "" {
					verdicts++
					t.Logf("%s/%s: %s", n.cluster.Name, n.Name, rows)
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
		results := watch.Since(begin)
		t.Logf("%d requests, %d failed within 500 ms, shares %v; %d polls, %d with a cluster judged down", len(results), Failed(results), Shares(results), polls, verdicts)
		if verdicts > 0 {
			t.Errorf("a cluster was judged down at 5 %% loss")
		}
		// A lost SYN, or its answer, or two losses in a row take longer than 500 ms.
		if n := Shares(results)["gcp"]; n < len(results)*3/5 {
			t.Errorf("%d of %d requests were answered by gcp", n, len(results))
		}
	})
	t.Run("loss 20 %", func(t *testing.T) {
		r := r.in(t)
		f := tunnels
		f.Loss, f.Seed = 0.2, 12
		heal := must(r.Inject(f))(t)
		defer heal()
		// Many at once: each mostly waits for retransmissions.
		begin := time.Now()
		var clients []*Client
		for i := range 8 {
			o := tcp([]string{checkout4, checkout6}[i%2])
			o.Timeout = 1500 * time.Millisecond // room for one retransmission
			c := must(r.client.Client(fmt.Sprintf("retry-%d", i), o))(t)
			defer c.Process.Kill()
			clients = append(clients, c)
		}
		time.Sleep(8 * time.Second)
		var all []Result
		for i, c := range clients {
			results := c.Since(begin)
			all = append(all, results...)
			// One try in three fails: that a client has ten in a row is no chance.
			if len(results) >= 10 && Failed(results) == len(results) {
				t.Errorf("client %d got no answer in %d tries: %s", i, len(results), firstError(results))
			}
		}
		t.Logf("%d requests, %d failed within 1.5 s (%s), shares %v", len(all), Failed(all), firstError(all), Shares(all))
		if Failed(all) > len(all)/2 {
			t.Errorf("%d of %d requests failed", Failed(all), len(all))
		}
	})
	r.in(t).awaitUp()
	t.Run("duplicates", func(t *testing.T) {
		r := r.in(t)
		f := tunnels
		f.Duplicate = 0.5
		heal := must(r.Inject(f))(t)
		defer heal()
		r.allOK(r.ask(r.client, 200, tcp(checkout4)), "gcp")
		r.allOK(r.ask(r.client, 200, udp(checkout6)), "gcp")
	})
	t.Run("late and out of order", func(t *testing.T) {
		r := r.in(t)
		quick := r.ask(r.client, 100, tcp(checkout4))
		heal := must(r.Delay(10*time.Millisecond, 20*time.Millisecond, 5))(t)
		defer heal()
		late := r.ask(r.client, 100, tcp(checkout4))
		r.allOK(quick, "gcp")
		r.allOK(late, "gcp")
		t.Logf("a request took %s, with 10–30 ms each way %s", meanTook(quick), meanTook(late))
		if q, l := meanTook(quick), meanTook(late); l < q+30*time.Millisecond {
			t.Errorf("the delay does not show: %s and %s", q, l)
		}
	})
	r.in(t).awaitUp()
}

func meanTook(results []Result) (sum time.Duration) {
	for _, res := range results {
		sum += res.Took
	}
	return sum / time.Duration(max(1, len(results)))
}

// awaitUp waits until nobody judges anybody down.
func (r *rig) awaitUp() {
	r.t.Helper()
	r.eventually(10*time.Second, "all verdicts are withdrawn", func() error {
		for _, c := range r.Clusters() {
			for _, n := range c.Nodes {
				if rows := r.table(n, "node_health") + r.table(n, "cluster_health"); rows != "" {
					return fmt.Errorf("%s/%s: %s", c.Name, n.Name, rows)
				}
			}
		}
		return nil
	})
}

// Only a dead data path evicts. What is cut is said by port and by direction.
func TestPartialFaults(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	r.affinity(r.a, "remote")
	c := must(r.client.Client("watch", tcp(checkout4)))(t)
	defer c.Process.Kill()
	must(c.Await(r.ctx, "an answer", time.Time{}, Result.OK))(t)

	t.Run("mesh port only", func(t *testing.T) {
		r := r.in(t)
		heal := must(r.Inject(Fault{From: "aws", To: "gcp", Proto: 6, Port: MeshPort, Loss: 1}))(t)
		back := must(r.Inject(Fault{From: "gcp", To: "aws", Proto: 6, Port: MeshPort, Loss: 1}))(t)
		begin := time.Now()
		time.Sleep(4 * time.Second) // as long as an eviction would take, and more
		results := c.Since(begin)
		r.allOK(results, "gcp")
		for _, n := range r.a.Nodes {
			if rows := r.table(n, "node_health") + r.table(n, "cluster_health"); rows != "" {
				t.Errorf("%s: judged down without cause: %s", n.Name, rows)
			}
		}
		t.Logf("%d requests to gcp, %d failed", len(results), Failed(results))
		noError(t, heal())
		noError(t, back())
	})
	t.Run("tunnels only", func(t *testing.T) {
		r := r.in(t)
		heal := must(r.Inject(Fault{Proto: 17, Port: WireGuardPort, Loss: 1}))(t)
		r.leavesAndReturns(c, heal)
		if s := r.clusterStatus(r.a.Nodes[0], "gcp"); s == nil || !s.Synced {
			t.Errorf("the records of gcp did not stay: %+v", s)
		}
	})
	t.Run("one way out", func(t *testing.T) {
		r := r.in(t)
		r.leavesAndReturns(c, must(r.Inject(Fault{From: "aws", To: "gcp", Loss: 1}))(t))
	})
	t.Run("one way in", func(t *testing.T) {
		r := r.in(t)
		r.leavesAndReturns(c, must(r.Inject(Fault{From: "gcp", To: "aws", Loss: 1}))(t))
	})
}

// leavesAndReturns checks that the client is served at home within 3 s, without a
// failure from then on, and goes back to gcp after heal.
func (r *rig) leavesAndReturns(c *Client, heal func() error) {
	r.t.Helper()
	begin := time.Now()
	first := must(c.Await(r.ctx, "an answer from home", begin, func(res Result) bool { return res.Cluster() == "aws" }))(r.t)
	// A request that began before the verdict may still be on its way.
	time.Sleep(600 * time.Millisecond)
	calm := time.Now()
	after := must(c.AwaitMore(r.ctx, calm, 100))(r.t)
	r.allOK(after, "aws")
	healed := time.Now()
	noError(r.t, heal())
	back := must(c.Await(r.ctx, "an answer from gcp after the healing", healed, func(res Result) bool { return res.Cluster() == "gcp" }))(r.t)
	r.t.Logf("left after %.2f s with %d requests failed, back %.2f s after the healing", first.End.Sub(begin).Seconds(),
		Failed(c.Since(begin))-Failed(c.Since(calm)), back.End.Sub(healed).Seconds())
	if took := first.End.Sub(begin); took > 3*time.Second {
		r.t.Errorf("left after %s only", took)
	}
	r.awaitUp()
	r.allOK(must(c.AwaitMore(r.ctx, time.Now(), 50))(r.t), "")
}
