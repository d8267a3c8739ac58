package apiserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

func TestJoin(t *testing.T) {
	a, b := startRig(t, "aws", 1), startRig(t, "gcp", 2)
	token := a.invite()
	dry, err := b.port.JoinMesh(t.Context(), token, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.peerNames() + b.peerNames(); got != "" {
		t.Fatalf("a dry run stored %q", got)
	}
	res, err := b.port.JoinMesh(t.Context(), token, false)
	if err != nil {
		t.Fatal(err)
	}
	if res.Cluster != "aws" || res.Fingerprint != a.ca.Fingerprint() || res.OwnFingerprint != b.ca.Fingerprint() || len(res.Checks) != len(dry.Checks)+1 {
		t.Errorf("%+v", res)
	}
	if a.peerNames() != "gcp" || b.peerNames() != "aws" {
		t.Fatalf("aws has %q, gcp has %q", a.peerNames(), b.peerNames())
	}
	if notes := append(a.notes(), b.notes()...); len(notes) > 0 {
		t.Errorf("notes left behind: %q", notes)
	}
	// aws dialled first, at a moment when gcp had not stored it yet: it must not
	// stay the stranger that it was then.
	begin := time.Now()
	waitUntil(t, "aws reaches gcp", func() bool { s := a.port.PeerStatus(); return len(s) == 1 && s[0].Reachable })
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("aws reached gcp after %v", d)
	}
	p := b.port
	waitUntil(t, "gcp reaches aws, and counts its reader", func() bool {
		s := p.PeerStatus()
		return len(s) == 1 && s[0].Reachable && s[0].Readers > 0 && s[0].LastSeen > 0 && s[0].Fingerprint == a.ca.Fingerprint()
	})
	if q := p.Problems(); len(q) > 0 {
		t.Errorf("problems: %v", q)
	}
	peer := p.Peers().Get("aws")
	if peer.ID != 1 || len(peer.PodPrefixes) != 1 || peer.PodPrefixes[0] != netip.MustParsePrefix("10.1.0.0/16") {
		t.Errorf("%+v", peer)
	}
	// The same token again, and a fresh one.
	wantRefusal(t, b.join(token), "joined already", "good for once")
	wantRefusal(t, b.join(a.invite()), "joined already")
	// A third one, by way of gcp, learns of aws.
	c := startRig(t, "edge", 3)
	res, err = c.port.JoinMesh(t.Context(), b.invite(), false)
	if err != nil || !slices.Equal(res.Existing, []string{"aws"}) {
		t.Errorf("existing %q, %v", res.Existing, err)
	}
}

// deadAddress is one where nobody listens.
func deadAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestJoinRefusals(t *testing.T) {
	prefix := func(p string) rigOption {
		return withOwn(func(c *clustermesh.Cluster) { c.PodPrefixes = []netip.Prefix{netip.MustParsePrefix(p)} })
	}
	advertise := func(addrs ...string) rigOption {
		return withOwn(func(c *clustermesh.Cluster) { c.MeshAddresses = addrs })
	}
	version := func(v string) rigOption {
		return withOwn(func(c *clustermesh.Cluster) { c.Version = v })
	}
	type world struct {
		a, b  *meshRig
		token string
	}
	dead := deadAddress(t)
	for _, c := range []struct {
		name     string
		nameB    string
		idB      clustermesh.ID
		optionsA []rigOption
		optionsB []rigOption
		before   func(*testing.T, *world)
		want     []string
	}{
		{name: "same name", nameB: "aws", want: []string{"named aws"}},
		{name: "same ID", idB: 1, want: []string{"both have ID 1", "--cluster-id"}},
		{name: "itself", before: func(_ *testing.T, w *world) { w.b = w.a }, want: []string{"from cluster aws itself"}},
		{name: "overlapping prefixes", optionsB: []rigOption{prefix("10.1.128.0/17")}, want: []string{"10.1.128.0/17", "10.1.0.0/16"}},
		{name: "prefix over the inviter's mesh port", optionsB: []rigOption{prefix("127.0.0.0/24")}, want: []string{"127.0.0.0/24", "contains 127.0.0.1, mesh address of aws", "--pod-prefix"}},
		{name: "prefix over the joiner's mesh port", optionsA: []rigOption{prefix("127.0.0.0/24")}, want: []string{"127.0.0.0/24", `contains 127.0.0.1, mesh address of "gcp"`}},
		{name: "prefix over the inviter's nodes", before: func(t *testing.T, w *world) { w.a.putNode(t, "172.20.0.7") }, optionsB: []rigOption{prefix("172.20.0.0/16")},
			want: []string{"cluster aws says", "172.20.0.0/16", `contains 172.20.0.7, underlay address of node "n1" of aws`, "--pod-prefix"}},
		{name: "prefix over the joiner's nodes", before: func(t *testing.T, w *world) { w.b.putNode(t, "172.20.0.7") }, optionsA: []rigOption{prefix("172.20.0.0/16")},
			want: []string{"172.20.0.0/16", `contains 172.20.0.7, underlay address of node "n1" of gcp`, "--pod-prefix"}},
		{name: "too broad a prefix", optionsB: []rigOption{prefix("32.0.0.0/7")}, want: []string{"32.0.0.0/7", "broader than /8", "--pod-prefix"}},
		{name: "no prefixes", optionsB: []rigOption{withOwn(func(c *clustermesh.Cluster) { c.PodPrefixes = nil })}, want: []string{"--pod-prefix"}},
		{name: "clock ahead", optionsB: []rigOption{withClock(time.Hour)}, want: []string{"the clock of cluster gcp says", "ours says", "1h0m0s apart", "NTP"}},
		{name: "clock behind", before: func(_ *testing.T, w *world) { w.a.setClock(-time.Hour) }, want: []string{"1h0m0s apart", "NTP"}},
		{name: "version", optionsB: []rigOption{version("v0.3.0")}, want: []string{"v0.3.0", "v0.1.0", "upgrade the older"}},
		{name: "used token", before: func(t *testing.T, w *world) {
			if err := startRig(t, "edge", 3).join(w.token); err != nil {
				t.Fatal(err)
			}
		}, want: []string{`used by "edge"`, "good for once", "mesh invite"}},
		{name: "expired token", before: func(_ *testing.T, w *world) {
			w.a.setClock(11 * time.Minute)
			w.b.setClock(11 * time.Minute)
		}, want: []string{"expired on", "mesh invite"}},
		{name: "truncated token", before: func(_ *testing.T, w *world) { w.token = w.token[:100] }, want: []string{"cut short"}},
		{name: "no token", before: func(_ *testing.T, w *world) { w.token = "hello" }, want: []string{"not a token"}},
		{name: "node token", before: func(t *testing.T, w *world) {
			tok, err := w.a.port.NodeToken(t.Context(), "n1", 0)
			if err != nil {
				t.Fatal(err)
			}
			w.token = tok.Text()
		}, want: []string{"node token", "mesh invite"}},
		{name: "forged secret", before: func(t *testing.T, w *world) {
			tok, _ := certs.ParseToken(w.token)
			tok.Secret[0] ^= 1
			w.token = tok.Text()
		}, want: []string{"knows no such token"}},
		{name: "wrong CA", before: func(t *testing.T, w *world) {
			tok, _ := certs.ParseToken(w.token)
			tok.Fingerprint = strings.Repeat("ab", 32)
			w.token = tok.Text()
		}, want: []string{"expected " + strings.Repeat("ab", 32), "new token"}},
		{name: "another cluster answers", before: func(t *testing.T, w *world) {
			tok, _ := certs.ParseToken(w.token)
			tok.Addresses = []string{startRig(t, "edge", 3).addr}
			w.token = tok.Text()
		}, want: []string{"spiffe://edge/apiserver", "new token"}},
		{name: "unreachable", before: func(t *testing.T, w *world) {
			tok, _ := certs.ParseToken(w.token)
			tok.Addresses = []string{dead}
			w.token = tok.Text()
		}, want: []string{dead, "refused", "firewall"}},
		{name: "dial back fails", optionsB: []rigOption{advertise(dead)}, want: []string{"aws could not dial back cluster gcp", dead, "--advertise"}},
		{name: "dial back reaches another", before: func(t *testing.T, w *world) {
			w.b.mu.Lock()
			defer w.b.mu.Unlock()
			w.b.own.MeshAddresses = []string{startRig(t, "edge", 3).addr}
		}, want: []string{"dial back", "edge"}},
		{name: "advertised address dead", before: func(t *testing.T, w *world) {
			w.a.mu.Lock()
			defer w.a.mu.Unlock()
			w.a.own.MeshAddresses = []string{dead}
		}, want: []string{"could not be reached where it says it is", dead}},
		{name: "bad advertised address", optionsB: []rigOption{advertise("0.0.0.0:1")}, want: []string{"--advertise"}},
		{name: "known name with another CA", before: func(t *testing.T, w *world) {
			first := startRig(t, "gcp", 2)
			if err := first.join(w.a.invite()); err != nil {
				t.Fatal(err)
			}
		}, want: []string{"named gcp", "another CA", "tombolo mesh remove gcp"}},
		{name: "conflict with a third", before: func(t *testing.T, w *world) {
			if err := startRig(t, "edge", 3, prefix("10.2.0.0/17")).join(w.a.invite()); err != nil {
				t.Fatal(err)
			}
		}, want: []string{"10.2.0.0/17", "edge"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			nameB, idB := "gcp", clustermesh.ID(2)
			if c.nameB != "" {
				nameB = c.nameB
			}
			if c.idB != 0 {
				idB = c.idB
			}
			w := &world{a: startRig(t, "aws", 1, c.optionsA...)}
			w.b = startRig(t, nameB, idB, c.optionsB...)
			w.token = w.a.invite()
			if c.before != nil {
				c.before(t, w)
			}
			peersA, peersB := w.a.peerNames(), w.b.peerNames()
			err := w.b.join(w.token)
			wantRefusal(t, err, c.want...)
			if a, b := w.a.peerNames(), w.b.peerNames(); a != peersA || b != peersB {
				t.Errorf("a refused join changed something: aws has %q, gcp has %q", a, b)
			}
		})
	}
}

// putNode publishes a node of the cluster.
func (r *meshRig) putNode(t *testing.T, underlay string) {
	t.Helper()
	n := &clustermesh.Node{Name: "n1", Number: 1, UnderlayAddresses: []netip.Addr{netip.MustParseAddr(underlay)}}
	value, err := clustermesh.Encode(n)
	if err != nil {
		t.Fatal(err)
	}
	key := clustermesh.Key{Scope: clustermesh.ScopeExport, Cluster: r.name, Kind: clustermesh.KindNode, Name: n.Name}
	if _, err := r.store.Commit(t.Context(), kvstore.Put(key.String(), value, 0)); err != nil {
		t.Fatal(err)
	}
}

func TestClustersThatShareACA(t *testing.T) {
	a := startRig(t, "aws", 1)
	b := startRig(t, "gcp", 2)
	// The bundle of gcp holds the CA of aws as well.
	shared := b.port.ownCluster()
	shared.CABundle = append(shared.CABundle, a.ca.Bundle()...)
	err := checkFit("join refused", a.port.ownCluster(), nil, nil, shared)
	wantRefusal(t, err, "share a CA", a.ca.Fingerprint())
}

// failPut fails the put of a peer's record.
func failPut(broken *bool) rigOption {
	return withStore(func(s kvstore.Store) kvstore.Store {
		return failingStore{s, func(key string) bool { return *broken && strings.Contains(key, "/peer/") }}
	})
}

func TestJoinIsTakenBackWhenOurSideCannotStore(t *testing.T) {
	broken := true
	a, b := startRig(t, "aws", 1), startRig(t, "gcp", 2, failPut(&broken))
	token := a.invite()
	wantRefusal(t, b.join(token), "disk full", "forgot us again")
	if got := a.peerNames() + b.peerNames(); got != "" {
		t.Errorf("half a join is left: %q", got)
	}
	if notes := b.notes(); len(notes) > 0 {
		t.Errorf("notes left: %q", notes)
	}
	broken = false
	if err := b.join(token); err != nil {
		t.Errorf("the same token again: %v", err)
	}
}

func TestInvitingSideCannotStore(t *testing.T) {
	broken := true
	a, b := startRig(t, "aws", 1, failPut(&broken)), startRig(t, "gcp", 2)
	token := a.invite()
	wantRefusal(t, b.join(token), "disk full")
	if got := a.peerNames() + b.peerNames(); got != "" {
		t.Errorf("half a join is left: %q", got)
	}
	broken = false
	if err := b.join(token); err != nil {
		t.Errorf("the same token again: %v", err)
	}
}

// crash runs a join of b up to the moment when a has stored and b has not.
func crash(t *testing.T, a, b *meshRig, token string) {
	t.Helper()
	j := &joining{port: b.port, own: b.port.ownCluster()}
	if err := j.readToken(token); err != nil {
		t.Fatal(err)
	}
	var err error
	for _, step := range []func() error{
		func() error { return j.dial(t.Context()) },
		func() error { return j.propose(t.Context()) },
		func() error { return j.dialAdvertised(t.Context()) },
		func() error { return b.port.introduce(t.Context(), a.name, promiseOf(j.other, j.token.Fingerprint)) },
		func() error { _, err := j.conn.Join(t.Context(), j.request(true)); return err },
	} {
		if err = errors.Join(err, step()); err != nil {
			t.Fatal(err)
		}
	}
	j.conn.close()
	if a.peerNames() != "gcp" || b.peerNames() != "" {
		t.Fatalf("aws %q, gcp %q", a.peerNames(), b.peerNames())
	}
}

func TestCrashBetweenCommits(t *testing.T) {
	t.Run("again with the same token", func(t *testing.T) {
		a, b := startRig(t, "aws", 1), startRig(t, "gcp", 2)
		token := a.invite()
		crash(t, a, b, token)
		if err := b.join(token); err != nil {
			t.Fatal(err)
		}
		if a.peerNames() != "gcp" || b.peerNames() != "aws" || len(b.notes()) > 0 {
			t.Errorf("aws %q, gcp %q, notes %q", a.peerNames(), b.peerNames(), b.notes())
		}
	})
	t.Run("a further try that is refused keeps the promise", func(t *testing.T) {
		a, b := startRig(t, "aws", 1), startRig(t, "gcp", 2)
		token := a.invite()
		crash(t, a, b, token)
		a.setClock(11 * time.Minute) // the token ends, by both clocks
		b.setClock(11 * time.Minute)
		wantRefusal(t, b.join(token), "expired on")
		if _, err := b.port.JoinMesh(t.Context(), a.invite(), true); err != nil {
			t.Fatal(err)
		}
		if err := b.port.undoHalfJoinsOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := a.peerNames() + b.peerNames(); got != "" || len(b.notes()) > 0 {
			t.Errorf("left: %q, notes %q", got, b.notes())
		}
	})
	t.Run("undone", func(t *testing.T) {
		a, b := startRig(t, "aws", 1), startRig(t, "gcp", 2)
		crash(t, a, b, a.invite())
		if err := b.port.undoHalfJoinsOnce(t.Context()); err != nil || a.peerNames() != "gcp" {
			t.Fatalf("a join may still be going on: %v, %q", err, a.peerNames())
		}
		b.setClock(halfJoinAge + time.Second)
		if err := b.port.undoHalfJoinsOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := a.peerNames() + b.peerNames(); got != "" || len(b.notes()) > 0 {
			t.Errorf("left: %q, notes %q", got, b.notes())
		}
	})
	t.Run("between propose and commit", func(t *testing.T) {
		a, b := startRig(t, "aws", 1), startRig(t, "gcp", 2)
		token := a.invite()
		if _, err := b.port.JoinMesh(t.Context(), token, true); err != nil {
			t.Fatal(err)
		}
		if err := b.join(token); err != nil {
			t.Error(err)
		}
	})
}

func TestTokenIsGoodForOneOfTwoAtOnce(t *testing.T) {
	a := startRig(t, "aws", 1)
	token := a.invite()
	errs := make(chan error)
	const n = 3
	for i := range n {
		b := startRig(t, fmt.Sprintf("c%d", i), clustermesh.ID(i+2))
		go func() { errs <- b.join(token) }()
	}
	ok := 0
	for range n {
		if err := <-errs; err == nil {
			ok++
		} else {
			wantRefusal(t, err)
		}
	}
	if ok != 1 || len(strings.Fields(a.peerNames())) != 1 {
		t.Errorf("%d joined with one token; peers %q", ok, a.peerNames())
	}
}

func TestLeaveAndRemove(t *testing.T) {
	join := func(t *testing.T) (a, b *meshRig) {
		a, b = startRig(t, "aws", 1), startRig(t, "gcp", 2)
		if err := b.join(a.invite()); err != nil {
			t.Fatal(err)
		}
		return a, b
	}
	gone := func(t *testing.T, rigs ...*meshRig) {
		t.Helper()
		for _, r := range rigs {
			if got := r.peerNames(); got != "" || len(r.notes()) > 0 {
				t.Errorf("%s still has %q, notes %q", r.name, got, r.notes())
			}
			// The watch may still bring what was there before, and then what came after.
			waitUntil(t, r.name+" trusts itself alone", func() bool { return slices.Equal(r.bundles.Clusters(), []string{r.name}) })
			waitUntil(t, "followers gone", func() bool { return len(r.port.PeerStatus()) == 0 })
		}
	}
	t.Run("leave", func(t *testing.T) {
		a, b := join(t)
		left, unreachable, err := b.port.LeaveMesh(t.Context(), false)
		if err != nil || !slices.Equal(left, []string{"aws"}) || len(unreachable) > 0 {
			t.Errorf("%q %q %v", left, unreachable, err)
		}
		gone(t, a, b)
	})
	t.Run("remove", func(t *testing.T) {
		a, b := join(t)
		told, warning, err := a.port.RemovePeer(t.Context(), "gcp", false)
		if err != nil || !told || warning != "" {
			t.Errorf("%v %q %v", told, warning, err)
		}
		gone(t, a, b)
		_, _, err = a.port.RemovePeer(t.Context(), "gcp", false)
		wantRefusal(t, err, "no peer")
		_, _, err = a.port.RemovePeer(t.Context(), "../x", false)
		wantRefusal(t, err)
		// The other side alone was removed: joining again mends it.
		if err := b.join(a.invite()); err != nil {
			t.Fatal(err)
		}
		if err := a.port.Peers().Delete(t.Context(), "gcp"); err != nil {
			t.Fatal(err)
		}
		if err := b.join(a.invite()); err != nil || a.peerNames() != "gcp" {
			t.Errorf("%v %q", err, a.peerNames())
		}
		if _, _, err := a.port.RemovePeer(t.Context(), "gcp", false); err != nil {
			t.Fatal(err)
		}
		// And join again.
		if err := b.join(a.invite()); err != nil {
			t.Error(err)
		}
	})
	t.Run("remove a dead peer", func(t *testing.T) {
		a, b := join(t)
		b.stop()
		_, _, err := a.port.RemovePeer(t.Context(), "gcp", false)
		wantRefusal(t, err, "could not be told", "--force")
		if a.peerNames() != "gcp" {
			t.Error("removed all the same")
		}
		told, warning, err := a.port.RemovePeer(t.Context(), "gcp", true)
		if err != nil || told || !strings.Contains(warning, "mesh remove aws --force") {
			t.Errorf("%v %q %v", told, warning, err)
		}
		gone(t, a)
	})
	t.Run("leave with a dead peer", func(t *testing.T) {
		a, b := join(t)
		a.stop()
		left, unreachable, err := b.port.LeaveMesh(t.Context(), false)
		if err != nil || len(left) > 0 || !slices.Equal(unreachable, []string{"aws"}) || b.peerNames() != "aws" {
			t.Errorf("%q %q %v", left, unreachable, err)
		}
		left, _, err = b.port.LeaveMesh(t.Context(), true)
		if err != nil || !slices.Equal(left, []string{"aws"}) {
			t.Errorf("%q %v", left, err)
		}
		gone(t, b)
	})
	t.Run("the other side forgot us", func(t *testing.T) {
		a, b := join(t)
		if err := b.port.Peers().Delete(t.Context(), "aws"); err != nil {
			t.Fatal(err)
		}
		told, _, err := a.port.RemovePeer(t.Context(), "gcp", false)
		if err != nil || !told {
			t.Errorf("%v %v", told, err)
		}
		gone(t, a, b)
	})
}

// A token is good for one join: a cluster that was taken out again does not come
// back by the token that it came with, however long that would still hold.
func TestRemovedClusterDoesNotComeBackByItsToken(t *testing.T) {
	for _, how := range []string{"remove", "leave"} {
		t.Run(how, func(t *testing.T) {
			a, b := startRig(t, "aws", 1), startRig(t, "gcp", 2)
			token := a.invite()
			if err := b.join(token); err != nil {
				t.Fatal(err)
			}
			var err error
			if how == "remove" {
				_, _, err = a.port.RemovePeer(t.Context(), "gcp", false)
			} else {
				_, _, err = a.port.LeaveMesh(t.Context(), false)
			}
			if err != nil {
				t.Fatal(err)
			}
			wantRefusal(t, b.join(token), "knows no such token")
			if a.peerNames()+b.peerNames() != "" {
				t.Errorf("aws has %q, gcp has %q", a.peerNames(), b.peerNames())
			}
			if err := b.join(a.invite()); err != nil {
				t.Errorf("with a new token: %v", err)
			}
		})
	}
}
