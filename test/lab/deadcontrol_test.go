package lab

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// No mesh API server anywhere, and the nodes lose power: kernel, pins and
// processes are gone. What the agents wrote to disk is enough to forward again,
// to pods with their old addresses.
func TestRebootWithoutControlPlane(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	r.affinity(r.a, "remote")
	r.allOK(r.ask(r.client, 20, tcp(checkout4)), "gcp")
	r.awaitSnapshots()
	before := map[string]string{}
	for _, n := range r.a.Nodes {
		for _, table := range []string{"services", "slots", "peers"} {
			before[n.Name+" "+table] = r.table(n, table)
		}
	}
	addresses := fmt.Sprint(r.client.Addresses, r.servers[r.b][0].Addresses)
	for _, c := range r.Clusters() {
		c.KillControlPlane()
	}
	begin := time.Now()
	for _, c := range r.Clusters() {
		noError(t, c.cutNodes())
	}
	for _, c := range r.Clusters() {
		r.bootNodes(c)
	}
	r.awaitPath(r.client, tcp(checkout4))
	t.Logf("nodes are up and forward %.1f s after their power was cut, with no control plane", time.Since(begin).Seconds())
	r.awaitTunnels()
	if now := fmt.Sprint(r.client.Addresses, r.servers[r.b][0].Addresses); now != addresses {
		t.Errorf("pods have other addresses: %s, before %s", now, addresses)
	}
	for _, addr := range []string{checkout4, checkout6} {
		r.allOK(r.ask(r.client, 50, tcp(addr)), "gcp")
		r.allOK(r.ask(r.client, 50, udp(addr)), "gcp")
	}
	for _, n := range r.a.Nodes {
		s := r.clusterStatus(n, "gcp")
		if s == nil || !s.FromSnapshot || s.Synced || s.Connected || s.LastError == "" {
			t.Errorf("%s does not say that it works from its snapshot: %+v", n.Name, s)
		}
		for _, table := range []string{"services", "slots", "peers"} {
			if now := r.table(n, table); now != before[n.Name+" "+table] {
				t.Errorf("%s: %s differ:\n%s\nbefore:\n%s", n.Name, table, now, before[n.Name+" "+table])
			}
		}
	}
	// The control planes come back: nothing is lost on the way.
	c := must(r.client.Client("watch", patient(tcp(checkout4))))(t)
	defer c.Process.Kill()
	for _, cl := range r.Clusters() {
		noError(t, cl.StartControlPlane(r.ctx))
	}
	r.eventually(30*time.Second, "agents are synced again", func() error {
		for _, cl := range r.Clusters() {
			for _, n := range cl.Nodes {
				for _, name := range []string{"aws", "gcp"} {
					if s := r.clusterStatus(n, name); s == nil || !s.Synced {
						return fmt.Errorf("%s/%s: %+v", cl.Name, n.Name, s)
					}
				}
			}
		}
		return nil
	})
	r.allOK(must(c.AwaitMore(r.ctx, time.Now(), 50))(t), "gcp")
	r.allOK(c.Since(time.Time{}), "gcp")
}

// awaitSnapshots waits until what the nodes of both clusters have on disk is
// newer than this call: a write may be under way that knows less.
func (r *rig) awaitSnapshots() {
	r.t.Helper()
	r.eventually(30*time.Second, "snapshots are written", func() error {
		for _, c := range r.Clusters() {
			for _, n := range c.Nodes {
				files, _ := filepath.Glob(filepath.Join(n.stateDir(), "snapshot", "*.snapshot"))
				// Own cluster: export and local; the other's export.
				if len(files) < 3 {
					return fmt.Errorf("%s/%s has %v", c.Name, n.Name, files)
				}
				for _, f := range files {
					info, err := os.Stat(f)
					if err != nil {
						return err
					}
					if age := time.Since(info.ModTime()); age < 1500*time.Millisecond {
						return fmt.Errorf("%s was written %s ago: it may not be the last", f, age)
					}
				}
			}
		}
		return nil
	})
}

// cutNodes cuts the power of the nodes; the control host is left alone.
func (c *Cluster) cutNodes() error {
	for _, n := range c.Nodes {
		if err := n.PowerOff(); err != nil {
			return err
		}
	}
	return nil
}

// bootNodes is the way back. No agent becomes ready, as no cluster answers: what
// counts is that the rows from its snapshot are in the kernel.
func (r *rig) bootNodes(c *Cluster) {
	r.t.Helper()
	for _, n := range c.Nodes {
		noError(r.t, n.Boot(r.ctx))
	}
	for _, n := range c.Nodes {
		r.eventually(20*time.Second, c.Name+"/"+n.Name+": tables written from the snapshot", func() error {
			var s agent.Status
			if err := n.GetJSON(r.ctx, "/v1/status", &s); err != nil {
				return err
			}
			for _, cl := range s.Clusters {
				if !cl.FromSnapshot {
					return fmt.Errorf("%+v", cl)
				}
			}
			for _, t := range s.Tables {
				if t.Pending > 0 || t.Name == agent.TableServices && t.Wanted == 0 {
					return fmt.Errorf("%+v", t)
				}
			}
			if len(s.Clusters) != len(r.Clusters()) {
				return fmt.Errorf("%d clusters", len(s.Clusters))
			}
			return nil
		})
	}
	for _, n := range c.Nodes {
		for _, p := range n.pods {
			noError(r.t, p.boot(r.ctx))
		}
	}
}

// A damaged snapshot is named and set aside; the agent goes on without it.
func TestDamagedSnapshot(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{})
	r.affinity(r.a, "remote")
	r.awaitSnapshots()
	n := r.a.Nodes[0]
	n.Agent().Kill()
	files, _ := filepath.Glob(filepath.Join(n.stateDir(), "snapshot", "gcp.*.snapshot"))
	if len(files) == 0 {
		t.Fatal("no snapshot of gcp")
	}
	for i, f := range files {
		b := must(os.ReadFile(f))(t)
		if i%2 == 0 {
			b[len(b)/2] ^= 0x40
		}
		noError(t, os.WriteFile(f, b, 0o600))
	}
	noError(t, n.StartAgent(r.ctx))
	r.eventually(10*time.Second, "the agent names the damaged snapshot", func() error {
		s := r.agentStatus(n)
		for _, p := range s.Problems {
			if holds(p.What, []string{"snapshot", "gcp", "cannot be used"}) {
				if p.Why == "" || p.Fix == "" {
					t.Errorf("problem without why or fix: %+v", p)
				}
				t.Logf("problem: %s: %s; fix: %s", p.What, p.Why, p.Fix)
				return nil
			}
		}
		return fmt.Errorf("problems: %+v", s.Problems)
	})
	r.allOK(r.ask(r.client, 50, tcp(checkout4)), "gcp")
}

// With the tunnel process dead, packets to pods of another cluster go nowhere: in
// clear least of all. Both families, from a pod and from the node.
func TestBlackhole(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{})
	n, remote := r.a.Nodes[0], r.servers[r.b][0]
	const mark = "in-clear-9c1d"
	capture := must(r.Capture(mark))(t)
	var direct []ClientOptions
	for _, a := range remote.Addresses {
		direct = append(direct, ClientOptions{Target: net.JoinHostPort(a.String(), fmt.Sprint(checkoutPort)), Mark: mark, Timeout: 200 * time.Millisecond})
		d := direct[len(direct)-1]
		d.Network = "udp"
		direct = append(direct, d)
	}
	for _, o := range direct {
		r.allOK(r.ask(r.client, 10, o), "gcp")
	}
	n.Tunnel().Kill()
	for _, o := range direct {
		for from, start := range map[string]func(string, ClientOptions) (*Client, error){"pod": r.client.Client, "node": n.Client} {
			results := r.asked(start, 10, o)
			if Failed(results) != len(results) {
				t.Errorf("from the %s, %s %s: %d of %d requests were answered without a tunnel", from, o.Network, o.Target, len(results)-Failed(results), len(results))
			}
		}
	}
	packets, marked, missed := capture.Count()
	if packets == 0 || marked > 0 || missed > 0 {
		t.Errorf("%d packets on the underlay, %d with the mark in clear, %d missed", packets, marked, missed)
	}
	// Not even what carries no word of ours: nothing at all to a pod prefix.
	if seen := capture.To(r.b.Nodes[0].PodPrefixes()...); seen > 0 {
		t.Errorf("%d packets to pod prefixes of gcp on the underlay", seen)
	}
	begin := time.Now()
	noError(t, n.StartTunnel())
	c := must(r.client.Client("back", direct[0]))(t)
	defer c.Process.Kill()
	first := must(c.Await(r.ctx, "the tunnel is back", begin, Result.OK))(t)
	t.Logf("%d packets captured; back %.2f s after the tunnel process", packets, first.End.Sub(begin).Seconds())
	r.awaitTunnels()
	for _, o := range direct {
		r.allOK(r.ask(r.client, 10, o), "gcp")
	}
}

// A peer that is dead is removed by force, one that lives by leaving: rows,
// routes, peers and the bundle are gone, and it may join again.
func TestLeaveAndRemove(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	gone := func(r *rig, c *Cluster, other string) {
		id := fmt.Sprint(r.Cluster(other).ID)
		r.eventually(10*time.Second, c.Name+" has nothing of "+other, func() error {
			st, err := c.Status(r.ctx)
			if err != nil {
				return err
			}
			for _, p := range st.Peers {
				if p.Peer.Name == other {
					return fmt.Errorf("the peer is still listed: %v", p)
				}
			}
			for _, n := range c.Nodes {
				if s := r.clusterStatus(n, other); s != nil {
					return fmt.Errorf("%s still follows it: %+v", n.Name, s)
				}
				for table, rows := range r.tables(n) {
					for line := range strings.Lines(rows) {
						if strings.Contains(line, "10."+id+".") || strings.Contains(line, "fd00:0:0:"+id+":") || strings.Contains(line, "fd00::"+id+":") ||
							strings.Contains(line, "cluster="+id+" ") || strings.Contains(line, "cluster="+id+"\n") {
							return fmt.Errorf("%s, table %s: %s", n.Name, table, line)
						}
					}
				}
				for _, args := range [][]string{{"ip", "-4", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"}} {
					out, err := n.host.run(r.ctx, nil, "", args...)
					if err != nil {
						return err
					}
					for _, p := range r.Cluster(other).Nodes {
						for _, prefix := range p.PodPrefixes() {
							if strings.Contains(out, prefix.Masked().String()) {
								return fmt.Errorf("%s still has a route to %s:\n%s", n.Name, prefix, out)
							}
						}
					}
				}
				if files, _ := filepath.Glob(filepath.Join(n.stateDir(), "snapshot", other+".*")); len(files) > 0 {
					return fmt.Errorf("%s keeps %v", n.Name, files)
				}
			}
			if dump := r.dump(c, "local"); strings.Contains(dump, "peer/"+other) {
				return fmt.Errorf("its bundle is still stored:\n%s", dump)
			}
			return nil
		})
	}
	again := func(r *rig) {
		_, _, err := r.b.Join(r.ctx, r.a)
		noError(r.t, err)
		for _, c := range r.Clusters() {
			for _, n := range c.Nodes {
				r.awaitBackends(n, 4)
			}
		}
		r.affinity(r.a, "remote")
		r.awaitTunnels()
		r.allOK(r.ask(r.client, 30, tcp(checkout4)), "gcp")
		r.affinity(r.a, "none")
	}
	t.Run("leave", func(t *testing.T) {
		r := r.in(t)
		res := must(must(r.b.Admin())(t).LeaveMesh(r.ctx, &pb.LeaveMeshRequest{}))(t)
		if fmt.Sprint(res.Left, res.Unreachable) != "[aws] []" {
			t.Errorf("left %v, unreachable %v", res.Left, res.Unreachable)
		}
		gone(r, r.a, "gcp")
		gone(r, r.b, "aws")
		r.allOK(r.ask(r.client, 30, tcp(checkout4)), "aws")
		again(r)
	})
	t.Run("remove a dead peer", func(t *testing.T) {
		r := r.in(t)
		noError(t, r.b.PowerOff())
		admin := must(r.a.Admin())(t)
		_, err := admin.RemovePeer(r.ctx, &pb.RemovePeerRequest{Cluster: "gcp"})
		r.wantError(err, "gcp", "could not be told", "--force")
		if m := r.members(r.a); !strings.Contains(m, "gcp") {
			t.Errorf("a refused removal removed the peer: %s", m)
		}
		res := must(admin.RemovePeer(r.ctx, &pb.RemovePeerRequest{Cluster: "gcp", Force: true}))(t)
		if res.Told || !holds(res.Warning, []string{"gcp", "mesh remove aws --force"}) {
			t.Errorf("told %v, warning %q", res.Told, res.Warning)
		}
		gone(r, r.a, "gcp")
		r.allOK(r.ask(r.client, 30, tcp(checkout4)), "aws")
		// The dead one wakes up, still believing; it is turned away, forgets too, and joins anew.
		noError(t, r.b.PowerOn(r.ctx))
		if s := r.clusterStatus(r.a.Nodes[0], "gcp"); s != nil {
			t.Errorf("aws follows a cluster that it removed: %+v", s)
		}
		must(must(r.b.Admin())(t).RemovePeer(r.ctx, &pb.RemovePeerRequest{Cluster: "aws", Force: true}))(t)
		gone(r, r.b, "aws")
		again(r)
	})
}
