package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// dump is what a cluster has published under a scope, without the times.
func (r *rig) dump(c *Cluster, scope string) string {
	r.t.Helper()
	admin := must(c.Admin())(r.t)
	res := must(admin.Dump(r.ctx, &pb.DumpRequest{Prefix: "/tombolo/v1/" + scope + "/"}))(r.t)
	return res.Text
}

// Bad manifests: each is named, and nothing that worked changes.
func TestBadManifests(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{})
	r.affinity(r.a, "local")
	c := must(r.client.Client("watch", patient(tcp(checkout4))))(t)
	defer c.Process.Kill()
	good := checkoutObject(map[string]string{"affinity": "local"})
	slots, services := r.table(r.a.Nodes[0], "slots"), r.table(r.a.Nodes[0], "services")
	records := r.dump(r.a, "export")
	for _, bad := range []struct {
		name, file, text string
		words            []string
	}{
		{"malformed YAML", "service-checkout", "apiVersion: v1\nkind: Service\nmetadata: {name: checkout\n  namespace: [", []string{"service-checkout", "not read", "line"}},
		{"unknown annotation value", "service-checkout", strings.Replace(good, `"local"`, `"nearby"`, 1), []string{"checkout", "annotations are refused", "nearby", "local, remote"}},
		{"global that is neither", "service-checkout", strings.Replace(good, `"tombolo.io/global": "true"`, `"tombolo.io/global": "perhaps"`, 1), []string{"checkout", "perhaps", "true"}},
		{"port out of range", "service-checkout", strings.Replace(good, `"port": 80,`, `"port": 80808,`, 1), []string{"checkout", "80808"}},
		{"slice outside the prefixes", "slice-alien", alienSlice("10.2.1.9"), []string{"checkout-alien", "10.2.1.9"}},
		{"slice with no address", "slice-alien", alienSlice("10.1.1"), []string{"checkout-alien", "10.1.1"}},
	} {
		t.Run(bad.name, func(t *testing.T) {
			r := r.in(t)
			begin := time.Now()
			noError(t, r.a.Apply(bad.file, bad.text))
			r.awaitProblem(r.a, bad.words...)
			r.allOK(must(c.AwaitMore(r.ctx, begin, 30))(t), "aws")
			if bad.file == "service-checkout" {
				// A given slice takes the derived ones' place, so only here all must be as before.
				if now := r.dump(r.a, "export"); withoutOrigins(now) != withoutOrigins(records) {
					t.Errorf("what is published changed:\n%s\nbefore:\n%s", now, records)
				}
				if now := r.table(r.a.Nodes[0], "slots"); now != slots {
					t.Errorf("slots changed:\n%s\nbefore:\n%s", now, slots)
				}
				if now := r.table(r.a.Nodes[0], "services"); now != services {
					t.Errorf("services changed:\n%s\nbefore:\n%s", now, services)
				}
				noError(t, r.a.Apply(bad.file, good))
			} else {
				if now := r.table(r.a.Nodes[0], "slots"); strings.Contains(now, "10.2.1.9") {
					t.Errorf("the alien address is a backend:\n%s", now)
				}
				noError(t, r.a.Unapply(bad.file))
			}
			r.eventually(10*time.Second, "no problems when it is corrected", func() error {
				st, err := r.a.Status(r.ctx)
				if err == nil && len(st.Problems) > 0 {
					err = fmt.Errorf("%v", st.Problems)
				}
				return err
			})
			r.awaitBackends(r.a.Nodes[0], 4)
		})
	}
	r.allOK(c.Since(time.Time{}), "aws")
}

func withoutOrigins(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		before, after, ok := strings.Cut(line, "origin=")
		if ok {
			_, after, _ = strings.Cut(after, " ")
			line = before + after
		}
		b.WriteString(line)
	}
	return b.String()
}

func alienSlice(addr string) string {
	return Manifest(Object{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata":  Object{"name": "checkout-alien", "namespace": "default", "labels": Object{"kubernetes.io/service-name": "checkout"}},
		"endpoints": []Object{{"addresses": []string{addr}, "conditions": Object{"ready": true}}},
		"ports":     []Object{{"name": "http", "port": 8080, "protocol": "TCP"}}})
}

// Clusters and tokens that do not fit: each refusal says why and what to do, and
// neither side stores anything.
func TestBadJoins(t *testing.T) {
	t.Parallel()
	r := newEmptyRig(t, Options{})
	// Only control planes: joining needs no node.
	flags := map[string][]string{
		"aws": {"--pod-prefix", "10.1.0.0/16"}, "gcp": {"--pod-prefix", "10.2.0.0/16"},
		"same-id": {"--cluster-id", "1", "--pod-prefix", "10.3.0.0/16"}, "same-name": {"--cluster", "aws", "--pod-prefix", "10.4.0.0/16"},
		"overlap": {"--pod-prefix", "10.1.128.0/17"}, "late": {"--pod-prefix", "10.6.0.0/16"},
	}
	errs := make(chan error, len(flags))
	for _, name := range []string{"aws", "gcp", "same-id", "same-name", "overlap", "late"} {
		c := must(r.AddCluster(name, 0))(t)
		go func() { errs <- c.StartControlPlane(r.ctx, flags[name]...) }()
	}
	var all error
	for range flags {
		all = errors.Join(all, <-errs)
	}
	noError(t, all)
	aws := r.Cluster("aws")
	inviter := must(aws.Admin())(t)
	invite := func(ttl int64) string {
		return must(inviter.Invite(r.ctx, &pb.InviteRequest{TtlSeconds: ttl}))(t).Token
	}
	_, _, err := r.Cluster("gcp").Join(r.ctx, aws)
	noError(t, err)
	used := invite(600)
	{
		// The token is used up by a cluster that then leaves again.
		late := must(r.Cluster("late").Admin())(t)
		must(late.JoinMesh(r.ctx, &pb.JoinMeshRequest{Token: used}))(t)
		must(late.LeaveMesh(r.ctx, &pb.LeaveMeshRequest{}))(t)
	}
	expired := invite(1)
	time.Sleep(1100 * time.Millisecond)

	for _, bad := range []struct {
		name, joiner, token string
		words               []string
	}{
		{"one ID", "same-id", invite(600), []string{"id 1", "aws", "give"}},
		{"one name", "same-name", invite(600), []string{"aws"}},
		{"overlapping prefixes", "overlap", invite(600), []string{"10.1.128.0/17", "10.1.0.0/16", "overlap"}},
		{"used", "overlap", used, []string{"used by \"late\"", "good for once", "invite"}},
		{"expired", "late", expired, []string{"expired", "invite"}},
		{"its own", "aws", invite(600), []string{"aws itself", "on the other cluster"}},
		{"truncated", "late", func() string { s := invite(600); return s[:len(s)-9] }(), []string{"token", "paste"}},
		{"not a token", "late", "hunter2", []string{"not a token", "paste"}},
		{"wrong CA", "late", forged(t, invite(600), func(tk *certs.Token) { tk.Fingerprint = strings.Repeat("ab", 32) }), []string{"CA", "fingerprint"}},
		{"wrong secret", "late", forged(t, invite(600), func(tk *certs.Token) { tk.Secret = make([]byte, 32) }), []string{"knows no such token", "invite"}},
		{"nobody there", "late", forged(t, invite(600), func(tk *certs.Token) { tk.Addresses = []string{"10.101.0.99:32379"} }), []string{"10.101.0.99", "reach"}},
		{"a node's token", "late", must(inviter.NodeToken(r.ctx, &pb.NodeTokenRequest{Node: "n1", TtlSeconds: 600}))(t).Token, []string{"node token", "invite"}},
	} {
		t.Run(bad.name, func(t *testing.T) {
			r := r.in(t)
			joiner := r.Cluster(bad.joiner)
			state := func() string { return r.members(aws) + r.members(joiner) + r.dump(aws, "export") }
			before := state()
			admin := must(joiner.Admin())(t)
			_, err := admin.JoinMesh(r.ctx, &pb.JoinMeshRequest{Token: bad.token})
			r.wantError(err, bad.words...)
			if after := state(); after != before {
				t.Errorf("a refused join changed something:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
	t.Run("after all that a good one", func(t *testing.T) {
		r := r.in(t)
		_, _, err := r.Cluster("late").Join(r.ctx, aws)
		noError(t, err)
		if m := r.members(aws); !strings.Contains(m, "late") || !strings.Contains(m, "gcp") {
			t.Errorf("members: %s", m)
		}
	})
}

func forged(t *testing.T, token string, change func(*certs.Token)) string {
	t.Helper()
	tk := must(certs.ParseToken(token))(t)
	change(&tk)
	return tk.Text()
}

// members are a cluster's peers, by name and CA.
func (r *rig) members(c *Cluster) string {
	r.t.Helper()
	res := must(must(c.Admin())(r.t).ListPeers(r.ctx, &pb.ListPeersRequest{}))(r.t)
	var b strings.Builder
	for _, p := range res.Peers {
		fmt.Fprintf(&b, "%s: %s %s\n", c.Name, p.Peer.Name, p.Fingerprint)
	}
	return b.String()
}

// The store under a cluster is swapped, emptied, or set back: it is said, and
// nobody's connections suffer.
func TestStoreChanges(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{})
	r.affinity(r.a, "remote")
	n := r.a.Nodes[0]
	c := must(r.client.Client("watch", patient(tcp(checkout4))))(t)
	defer c.Process.Kill()
	must(c.Await(r.ctx, "an answer", time.Time{}, Result.OK))(t)
	etcdDir, backup, foreign := r.b.StateDir()+"/etcd", r.b.Dir+"/etcd-backup", r.b.Dir+"/etcd-foreign"

	// A backup, then a change that the backup does not know.
	r.b.ControlPlane().Stop(5 * time.Second)
	noError(t, os.CopyFS(backup, os.DirFS(etcdDir)))
	noError(t, r.b.StartControlPlane(r.ctx))
	r.addServer(r.b, "checkout-3", 0)
	r.awaitBackends(n, 5)

	follows := func(r *rig, want int) {
		// A store that went back in time may be a replica that lags: readers give it
		// 10 s, and ask again ever more slowly.
		r.eventually(45*time.Second, "aws follows the new store of gcp", func() error {
			s := r.clusterStatus(n, "gcp")
			own := r.clusterStatus(r.b.Nodes[0], "gcp")
			st, err := r.b.Status(r.ctx)
			if err != nil {
				return err
			}
			id := fmt.Sprintf("%x", st.StoreId)
			for _, s := range []struct{ store string }{{s.StoreID}, {own.StoreID}} {
				if strings.TrimLeft(s.store, "0") != id {
					return fmt.Errorf("an agent follows store %s, it is %s", s.store, id)
				}
			}
			if !s.Connected || !s.Synced || s.Revision < st.Revision {
				return fmt.Errorf("%+v; the store is at %d", s, st.Revision)
			}
			return nil
		})
		r.awaitBackends(n, want)
	}
	for _, change := range []struct {
		name  string
		do    func(t *testing.T)
		words []string
	}{
		{"backup", func(t *testing.T) { noError(t, os.CopyFS(etcdDir, os.DirFS(backup))) }, []string{"etcd", "restored from a backup"}},
		{"empty", func(*testing.T) {}, []string{"etcd", "came back empty"}},
		{"another one", func(t *testing.T) { noError(t, os.CopyFS(etcdDir, os.DirFS(foreign))) }, []string{"etcd", "different one"}},
	} {
		t.Run(change.name, func(t *testing.T) {
			r := r.in(t)
			r.awaitBackends(r.b.Nodes[0], 5)
			slots := r.table(r.b.Nodes[0], "slots")
			begin := time.Now()
			r.b.ControlPlane().Stop(5 * time.Second)
			if change.name == "empty" { // what is there now is the foreign one later
				noError(t, os.Rename(etcdDir, foreign))
			}
			noError(t, os.RemoveAll(etcdDir))
			change.do(t)
			noError(t, r.b.StartControlPlane(r.ctx))
			r.awaitProblem(r.b, change.words...)
			if m := r.members(r.b); !strings.Contains(m, "aws") {
				t.Errorf("gcp has forgotten its peer: %q", m)
			}
			// Nothing may go away meanwhile, at home neither.
			for range 20 {
				if rows := r.table(r.b.Nodes[0], "slots"); strings.Count(rows, "\n") != strings.Count(slots, "\n") {
					t.Fatalf("backends went away in gcp:\n%s\nbefore:\n%s", rows, slots)
				}
				time.Sleep(50 * time.Millisecond)
			}
			follows(r, 5)
			t.Logf("followed %.1f s after the stop", time.Since(begin).Seconds())
			results := c.Since(begin)
			r.allOK(results, "gcp")
			t.Logf("%d requests to gcp meanwhile, %d failed", len(results), Failed(results))
		})
	}
	t.Run("changes still arrive", func(t *testing.T) {
		r := r.in(t)
		last := r.servers[r.b][2]
		noError(t, last.Remove(r.ctx))
		r.awaitBackends(n, 4)
		// Whoever was joined before still is.
		r.eventually(10*time.Second, "gcp follows aws again", func() error {
			if s := r.clusterStatus(r.b.Nodes[0], "aws"); s == nil || !s.Connected || !s.Synced {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	})
}
