package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// flood has the peer drain n services that nobody has, and those of this cluster
// from one on up to another; it is heard as far as the cap goes.
func (r *drainRig) flood(n, from, to int) (refused []clustermesh.Refusal) {
	var changes []clustermesh.Change
	add := func(name clustermesh.ServiceName) {
		d := &clustermesh.Drain{Cluster: "c2", Service: name, Start: r.now.Add(-time.Minute)}
		changes = append(changes, clustermesh.Change{Key: clustermesh.KeyOf(clustermesh.ScopeExport, "c2", d), Record: d})
	}
	for i := from; i < to; i++ {
		add(manyName(i))
	}
	for i := range n {
		add(clustermesh.ServiceName{Namespace: "junk", Name: fmt.Sprint("s", i)})
	}
	return r.s.Apply(clustermesh.Update{Cluster: "c2", Scope: clustermesh.ScopeExport, Changes: changes}, true)
}

// TestDrainFlood: a peer that drains a hundred thousand services nobody has is heard
// for a thousand, which take no place in the background pass and no series; that it
// drains itself is heard all the same.
func TestDrainFlood(t *testing.T) {
	r := newDrainRig(t, 2)
	const n = 100_000
	refused := r.flood(n, 0, 1)
	if want := n + 1 - clustermesh.MaxServiceDrains; len(refused) != want || refused[0].Class != clustermesh.RefusedDrains {
		t.Fatalf("%d refused, want %d: %v", len(refused), want, refused[:min(len(refused), 1)])
	}
	r.s.drains.now = r.now
	if r.s.takeDrains(); r.s.pass.waiting() != 1 || len(r.s.drains.in) != clustermesh.MaxServiceDrains {
		t.Errorf("%d services wait, of %d drains", r.s.pass.waiting(), len(r.s.drains.in))
	}
	r.pass(100 * time.Millisecond)
	if a, b := r.row(0), r.row(1); !strings.Contains(a, "tier1=65535[2*0#1]") || b != "tier0=65535[1*1#1,2*1#1]" {
		t.Errorf("%s and %s", a, b)
	}
	itself := &clustermesh.Drain{Cluster: "c2", Start: r.now}
	r.say("c2", clustermesh.ScopeExport, itself, itself)
	r.pass(100 * time.Millisecond)
	if b := r.row(1); !strings.Contains(b, "tier1=65535[2*0#1]") {
		t.Errorf("it drains itself: %s", b)
	}
	status := r.s.drainStatus(r.now)
	if len(status) != 2 || status[0].Services+status[1].Services != clustermesh.MaxServiceDrains {
		t.Errorf("status: %+v", status)
	}
	series := 0
	collector{}.drains(status, func(*prometheus.Desc, float64, ...string) { series++ })
	if series != 3 {
		t.Errorf("%d series", series)
	}
	if of := r.s.drainsOf(manyName(0), r.now); len(of) != 2 {
		t.Errorf("of a service: %+v", of)
	}
}

// TestOwnDrainsComeFirst: what this cluster's operator drains does not wait for what
// peers do, and takes nothing away from it.
func TestOwnDrainsComeFirst(t *testing.T) {
	const n = 2 * passBurst
	r := newDrainRig(t, n)
	itself := &clustermesh.Drain{Cluster: "c2", Start: r.now}
	r.say("c2", clustermesh.ScopeExport, itself, itself)
	one := &clustermesh.Drain{Cluster: "c2", Service: manyName(n - 1), Start: r.now}
	r.say("c1", clustermesh.ScopeLocal, one, one)
	r.s.drains.now = r.now
	r.s.takeDrains()
	if got := r.s.pass.pop(); got != one.Service {
		t.Errorf("%v came first", got)
	}
	r.s.pass.add(one.Service, true)
	r.pass(2 * time.Second)
	for i := range n {
		if got := r.row(i); !strings.Contains(got, "tier1=65535[2*0#1]") {
			t.Fatalf("service %d: %s", i, got)
		}
		if i == 3 {
			break
		}
	}
	if r.s.pass.waiting() != 0 || len(r.s.pass.first)+len(r.s.pass.later) != 0 {
		t.Errorf("%d wait", r.s.pass.waiting())
	}
}

// BenchmarkDrainFlood is what a change of one drain costs beside all that a peer may
// say, and a merge of a service.
func BenchmarkDrainFlood(b *testing.B) {
	r := newDrainRig(b, 1)
	r.flood(2*clustermesh.MaxServiceDrains, 0, 0)
	r.pass(20 * time.Millisecond)
	d := &clustermesh.Drain{Cluster: "c2", Service: clustermesh.ServiceName{Namespace: "junk", Name: "s0"}, Start: r.now, Over: time.Hour}
	for b.Loop() {
		again := *d
		again.From = uint16(b.N)
		r.say("c2", clustermesh.ScopeExport, &again, &again)
		r.now = r.now.Add(time.Microsecond)
		r.s.passOn(r.now)
	}
}
