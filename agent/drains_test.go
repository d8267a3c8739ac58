package agent

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// drainRig is cluster c1 with peer c2; both have n services with one backend each.
type drainRig struct {
	t   testing.TB
	s   *State
	now time.Time
}

func newDrainRig(t testing.TB, n int) *drainRig {
	r := &drainRig{t: t, s: newState(Config{Cluster: "c1", ClusterID: 1, Node: "n1"}, NewFakes()), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	for _, d := range r.s.t.all() {
		if _, err := d.Resync(1); err != nil {
			t.Fatal(err)
		}
	}
	local := clustermesh.NewView(clustermesh.Admission{Cluster: "c1", ID: 1, Local: true}, clustermesh.ScopeLocal)
	r.into(local, &clustermesh.Peer{Name: "c2", ID: 2, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	r.s.Apply(clustermesh.Update{Cluster: "c1", Scope: clustermesh.ScopeLocal, View: local}, true)
	for i, cluster := range []string{"c1", "c2"} {
		v := clustermesh.NewView(clustermesh.Admission{Cluster: cluster, ID: clustermesh.ID(i + 1), Local: i == 0, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, clustermesh.ScopeExport)
		for s := range n {
			r.into(v, &clustermesh.Service{Name: manyName(s), Global: true, Shared: true, Ports: []clustermesh.Port{{Name: "web", Protocol: clustermesh.TCP, Port: 80}},
				Frontends: []netip.Addr{netip.AddrFrom4([4]byte{172, byte(16 + s>>16), byte(s >> 8), byte(s)})}}, drainSlice(s, i))
		}
		r.s.Apply(clustermesh.Update{Cluster: cluster, Scope: clustermesh.ScopeExport, View: v}, true)
	}
	finish(r.s)
	return r
}

// drainSlice has one backend of service s in cluster i.
func drainSlice(s, i int) *clustermesh.EndpointSlice {
	slice := manySlice(s*2+i, 1) // other addresses in each cluster
	slice.Name.Service = manyName(s)
	return slice
}

func (r *drainRig) into(v *clustermesh.View, records ...clustermesh.Record) {
	for _, rec := range records {
		if err := v.Apply(clustermesh.Change{Key: clustermesh.KeyOf(v.Scope(), v.Name(), rec), Record: rec}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// say writes (or, with nothing to write, deletes) a record of a drain.
func (r *drainRig) say(cluster string, scope clustermesh.Scope, at, rec *clustermesh.Drain) {
	r.t.Helper()
	ch := clustermesh.Change{Key: clustermesh.KeyOf(scope, cluster, at)}
	if rec != nil {
		ch.Record = rec
	}
	if refused := r.s.Apply(clustermesh.Update{Cluster: cluster, Scope: scope, Changes: []clustermesh.Change{ch}}, true); len(refused) > 0 {
		r.t.Fatal(refused)
	}
}

// pass lets time go on, a background pass every 10 ms.
func (r *drainRig) pass(d time.Duration) {
	for end := r.now.Add(d); r.now.Before(end); {
		r.now = r.now.Add(10 * time.Millisecond)
		r.s.passOn(r.now)
		finish(r.s)
	}
}

// row is what the kernel has of a service's tiers.
func (r *drainRig) row(i int) string {
	for k, row := range r.s.t.services.wanted {
		if row.ID == ServiceID(manyName(i), "web", clustermesh.TCP, false) {
			line := formatService(k, row)
			return line[strings.Index(line, "tier0"):]
		}
	}
	return "none"
}

// TestDrainOverTime: the weight falls step by step, ends behind the others, and
// comes back; what a fresh state makes of the same records and time is the same.
func TestDrainOverTime(t *testing.T) {
	r := newDrainRig(t, 1)
	out := &clustermesh.Drain{Cluster: "c2", Start: r.now, Over: 4 * time.Second, From: clustermesh.ShareAll}
	r.say("c1", clustermesh.ScopeLocal, out, out)
	for second, want := range []string{
		"tier0=65535[1*1#1,2*1#1]", "tier0=65535[1*65535#1,2*49152#1]", "tier0=65535[1*65535#1,2*32768#1]",
		"tier0=65535[1*65535#1,2*16384#1]", "tier0=65535[1*1#1] tier1=65535[2*0#1]",
	} {
		r.pass(out.Start.Add(time.Duration(second)*time.Second + 10*time.Millisecond).Sub(r.now))
		if got := r.row(0); got != want {
			t.Errorf("after %d s: %s, want %s", second, got, want)
		}
		again := newDrainRig(t, 1)
		again.now = r.now
		again.s.passOn(r.now)
		again.say("c1", clustermesh.ScopeLocal, out, out)
		again.pass(10 * time.Millisecond)
		if got := again.row(0); got != want {
			t.Errorf("a fresh state after %d s: %s, want %s", second, got, want)
		}
	}
	back := &clustermesh.Drain{Cluster: "c2", Start: r.now, Over: 2 * time.Second, Back: true}
	r.say("c1", clustermesh.ScopeLocal, back, back)
	r.pass(1010 * time.Millisecond)
	if got := r.row(0); got != "tier0=65535[1*65535#1,2*32767#1]" {
		t.Errorf("half way back: %s", got)
	}
	r.pass(time.Second)
	if got := r.row(0); got != "tier0=65535[1*1#1,2*1#1]" || len(r.s.drainStatus(r.now)) != 0 {
		t.Errorf("back: %s, %v", got, r.s.drainStatus(r.now))
	}
}

// TestDrainWhoSaysSo: of several drains the one that leaves least is in force, and
// each ends by itself.
func TestDrainWhoSaysSo(t *testing.T) {
	r := newDrainRig(t, 2)
	at := r.now.Add(-time.Minute)
	const all, drained = "tier0=65535[1*1#1,2*1#1]", "tier0=65535[1*1#1] tier1=65535[2*0#1]"
	operator, itself := &clustermesh.Drain{Cluster: "c2", Start: at, From: 1}, &clustermesh.Drain{Cluster: "c2", Start: at, From: 2}
	one := &clustermesh.Drain{Cluster: "c2", Service: manyName(1), Start: at}
	r.say("c1", clustermesh.ScopeLocal, operator, operator)
	r.say("c2", clustermesh.ScopeExport, itself, itself)
	r.say("c1", clustermesh.ScopeLocal, one, one)
	for i, end := range []struct {
		cluster      string
		scope        clustermesh.Scope
		drain        *clustermesh.Drain
		first, other string
	}{
		{"c1", clustermesh.ScopeLocal, operator, drained, drained}, {"c2", clustermesh.ScopeExport, itself, drained, drained},
		{"c1", clustermesh.ScopeLocal, one, all, drained}, {"", "", nil, all, all},
	} {
		r.pass(100 * time.Millisecond)
		if a, b := r.row(0), r.row(1); a != end.first || b != end.other {
			t.Errorf("step %d: %s and %s; want %s and %s", i, a, b, end.first, end.other)
		}
		if end.drain != nil {
			r.say(end.cluster, end.scope, end.drain, nil)
		}
	}
}

// TestBackgroundPassIsLimited: however many services a drain touches, so many are
// merged in a second; an urgent change does not wait for them.
func TestBackgroundPassIsLimited(t *testing.T) {
	const n = 2*passRate + passBurst
	r := newDrainRig(t, n)
	r.pass(time.Second)
	d := &clustermesh.Drain{Cluster: "c2", Start: r.now.Add(-time.Hour)}
	r.say("c1", clustermesh.ScopeLocal, d, d)
	for _, want := range []int{passBurst + passRate/2, passBurst + passRate, passBurst + 3*passRate/2, n} {
		r.pass(time.Second / 2)
		if done := n - r.s.pass.waiting(); done < want-passBurst/2 || done > want+passBurst/2 {
			t.Errorf("%d done, want about %d", done, want)
		}
	}
	r.pass(time.Second / 10) // the rest of the last second
	for i := range n {
		if got := r.row(i); !strings.Contains(got, "tier1=65535[2*0#1]") {
			t.Fatalf("service %d: %s", i, got)
		}
		if i == 10 {
			break
		}
	}
}

// BenchmarkBackgroundPass is one step of a drain for 10,000 services of two
// clusters: what it costs in all, and for a service.
func BenchmarkBackgroundPass(b *testing.B) {
	const n = 10_000
	r := newDrainRig(b, n)
	over := time.Hour
	d := &clustermesh.Drain{Cluster: "c2", Start: r.now, Over: over, From: clustermesh.ShareAll}
	r.say("c1", clustermesh.ScopeLocal, d, d)
	r.s.passOn(r.now)
	step := 0
	for b.Loop() {
		step = step%19 + 1
		at := d.Start.Add(time.Duration(step) * over / 20)
		r.s.passOn(at)
		for r.s.pass.waiting() > 0 {
			at = at.Add(100 * time.Millisecond)
			r.s.passOn(at)
			finish(r.s)
		}
		finish(r.s)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/n, "µs/service")
	b.ReportMetric(n/float64(passRate), "s/pass")
}

// Clients with session affinity are told to leave once all is drained, not before;
// where all clusters are drained none is.
func TestDrainEndsSessionAffinity(t *testing.T) {
	r := newDrainRig(t, 1)
	for svc := range r.s.clusters["c1"].export().Services() {
		sticky := *svc
		sticky.SessionAffinity = time.Hour
		r.s.Apply(clustermesh.Update{Cluster: "c1", Scope: clustermesh.ScopeExport,
			Changes: []clustermesh.Change{{Key: clustermesh.KeyOf(clustermesh.ScopeExport, "c1", svc), Record: &sticky}}}, true)
	}
	d := &clustermesh.Drain{Cluster: "c2", Start: r.now, Over: 2 * time.Second, From: clustermesh.ShareAll}
	r.say("c1", clustermesh.ScopeLocal, d, d)
	leaves := func() bool {
		for _, row := range r.s.t.services.wanted {
			if row.Flags&ServiceDrained != 0 {
				return true
			}
		}
		return false
	}
	if r.pass(1500 * time.Millisecond); leaves() {
		t.Error("too early")
	}
	if r.pass(time.Second); !leaves() {
		t.Error("they stay for ever")
	}
	own := &clustermesh.Drain{Cluster: "c1", Start: d.Start}
	r.say("c1", clustermesh.ScopeExport, own, own)
	if r.pass(time.Second); leaves() {
		t.Error("there is nowhere to go")
	}
}
