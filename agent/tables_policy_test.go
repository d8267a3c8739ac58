package agent

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// policyRig is the tables that policy is in, and checks each single write.
type policyRig struct {
	t         *testing.T
	t1        *tableSet
	policy    *Fake[PolicyKey, PolicyRow]
	ips       *Fake[Addr, IPCacheRow]
	subjects  *Fake[SubjectKey, SubjectRow]
	endpoints *Fake[Addr, EndpointRow]
	epoch     *FakeEpoch
	faults    []func(Schedule)
	log       []string
}

func newPolicyRig(t *testing.T, policyRows, subjects int) *policyRig {
	r := &policyRig{
		t: t, epoch: &FakeEpoch{},
		policy: NewFake[PolicyKey, PolicyRow](TablePolicy, policyRows), ips: NewFake[Addr, IPCacheRow](TableIPs, 0),
		subjects: NewFake[SubjectKey, SubjectRow](TableSubjects, subjects), endpoints: NewFake[Addr, EndpointRow](TableEndpoints, 0),
	}
	tables := NewFakes()
	tables.Policy, tables.IPs, tables.Subjects, tables.Endpoints = faultyTable(r, r.policy), faultyTable(r, r.ips), faultyTable(r, r.subjects), faultyTable(r, r.endpoints)
	tables.Epoch = r.epoch
	all := func(clustermesh.ID) bool { return true }
	r.t1 = newTableSet(tables, 1, func(netip.Prefix) clustermesh.ID { return 1 }, all)
	for _, d := range r.t1.all() {
		if done, err := d.Resync(MaxBatch); !done || err != nil {
			t.Fatalf("read %s: %v %v", d.name(), done, err)
		}
	}
	r.policy.OnChange(func(k PolicyKey, v *PolicyRow) {
		r.note("policy", k, v)
		row, there := r.subjects.Get(k.Subject)
		if v == nil && there && row.Flags&SubjectClosed == 0 && r.has(k.Subject) {
			if _, wished := r.t1.wishes.subjects[k.Subject]; !wished {
				r.fail("row %v left while a pod has its subject", k)
			} else if r.known(k.Peer) {
				r.fail("row %v left while an address is known by %v", k, k.Peer)
			}
		}
	})
	r.ips.OnChange(func(k Addr, v *IPCacheRow) {
		r.note("ips", k, v)
		if v != nil {
			r.complete(PolicyPeer(v.Identity))
		}
	})
	r.subjects.OnChange(func(k SubjectKey, v *SubjectRow) {
		r.note("subjects", k, v)
		switch {
		case v == nil:
			if r.has(k) {
				r.fail("subject %x left while a pod has it", k)
			}
		case v.Flags&SubjectClosed == 0:
			for key := range r.t1.policy.wanted {
				if _, there := r.policy.Get(key); key.Subject == k && !there {
					r.fail("subject %x without its row %v", k, key)
				}
			}
		}
	})
	r.endpoints.OnChange(func(k Addr, v *EndpointRow) {
		r.note("endpoints", k, v)
		if v != nil && v.Subject != 0 {
			if _, there := r.subjects.Get(SubjectKey(v.Subject)); !there {
				r.fail("endpoint %v without its subject %x", k, v.Subject)
			}
			r.given(k, *v)
		}
	})
	return r
}

func faultyTable[K comparable, V any](r *policyRig, f *Fake[K, V]) Table[K, V] {
	t := NewFaulty(f, NoFaults)
	r.faults = append(r.faults, t.SetSchedule)
	return t
}

func (r *policyRig) note(table string, k, v any) {
	r.log = append(r.log, fmt.Sprintf("%s %v %v", table, k, v))
}

func (r *policyRig) fail(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(r.log[max(0, len(r.log)-40):], "\n"))
}

// known reports whether an address in the kernel has that identity.
func (r *policyRig) known(p PolicyPeer) bool {
	for _, v := range r.ips.Rows() {
		if PolicyPeer(v.Identity) == p {
			return true
		}
	}
	return false
}

// has reports whether a pod in the kernel has a subject.
func (r *policyRig) has(k SubjectKey) bool {
	for _, row := range r.endpoints.Rows() {
		if row.Subject == uint64(k) {
			return true
		}
	}
	return false
}

// given: whoever gets a subject gets it with all its rows, or closed. A pod that
// has it already, as far as is known, may be written again.
func (r *policyRig) given(a Addr, v EndpointRow) {
	subject, _ := r.subjects.Get(SubjectKey(v.Subject))
	before, had := r.t1.endpoints.Actual(a) // what it knows before the write is done
	if subject.Flags&SubjectClosed != 0 || had && before.Subject == v.Subject {
		return
	}
	for k := range r.t1.policy.wanted {
		if _, there := r.policy.Get(k); k.Subject == SubjectKey(v.Subject) && !there {
			r.fail("endpoint %v is given subject %x without its row %v", a, v.Subject, k)
		}
	}
}

// complete: no address is known by an identity that the subject of a pod lacks a row of.
func (r *policyRig) complete(p PolicyPeer) {
	for k := range r.t1.policy.wanted {
		row, there := r.subjects.Get(k.Subject)
		if k.Peer != p || !there || row.Flags&SubjectClosed != 0 || !r.has(k.Subject) {
			continue
		}
		if _, there := r.policy.Get(k); !there {
			r.fail("an address is known by %v while subject %x lacks its row", p, k.Subject)
		}
	}
}

func (r *policyRig) flush(budget int) {
	before := r.t1.verdictWrites()
	epoch := r.epoch.Now()
	due := r.t1.epoch.due
	r.t1.flush(budget)
	changed := r.t1.verdictWrites() != before || due
	if got := r.epoch.Now() - epoch; (got == 1) != changed || got > 1 {
		r.fail("the epoch was counted up %d times, changed %v", got, changed)
	}
}

// wishes are as the engine makes them: rows of every subject for every identity
// that its policy names, and of no other.
type policyWishes struct {
	*policyRig
	subjects, identities map[int]bool
	addrs                map[Addr]int
}

func (w *policyWishes) row(s, id int) (PolicyKey, PolicyRow, bool) {
	return PolicyKey{Subject: SubjectKey(s), Peer: PolicyPeer(clustermesh.MakeIdentity(1, uint32(id)))}, PolicyRow{Allow: uint32(s)}, (s*7+id)%3 > 0
}

func (w *policyWishes) subject(s int, on bool) {
	w.subjects[s] = on
	for id, there := range w.identities {
		if k, v, has := w.row(s, id); has && there && on {
			w.t1.policy.Set(k, v)
		} else {
			w.t1.policy.Delete(k)
		}
	}
	if on {
		w.t1.setSubject(SubjectKey(s), SubjectRow{IsolatedIn})
	} else {
		w.t1.deleteSubject(SubjectKey(s))
	}
}

func (w *policyWishes) identity(id int, on bool) {
	w.identities[id] = on
	for s, there := range w.subjects {
		if k, v, has := w.row(s, id); has && there && on {
			w.t1.policy.Set(k, v)
		} else {
			w.t1.policy.Delete(k)
		}
	}
	if !on {
		for a, has := range w.addrs {
			if has == id {
				w.address(a, 0)
			}
		}
	}
}

func (w *policyWishes) address(a Addr, id int) {
	w.addrs[a] = id
	if id == 0 {
		w.t1.ips.Delete(a)
		return
	}
	w.t1.ips.Set(a, IPCacheRow{Identity: uint32(clustermesh.MakeIdentity(1, uint32(id)))})
}

func (w *policyWishes) step(rng *rand.Rand) {
	addr := func(i int) Addr { return MakeAddr(netip.AddrFrom4([4]byte{10, 1, 1, byte(i)})) }
	switch rng.IntN(6) {
	case 0:
		w.subject(1+rng.IntN(6), true)
	case 1:
		s := 1 + rng.IntN(6)
		for _, row := range w.t1.wishes.endpoints {
			if row.Subject == uint64(s) {
				return // somebody has it
			}
		}
		w.subject(s, false)
	case 2:
		w.identity(1+rng.IntN(8), rng.IntN(3) > 0)
	case 3:
		if id := 1 + rng.IntN(8); w.identities[id] {
			w.address(addr(100+rng.IntN(10)), id)
		}
	case 4:
		a := addr(rng.IntN(5))
		if rng.IntN(4) == 0 {
			w.t1.deleteEndpoint(a)
			return
		}
		s := rng.IntN(7)
		if !w.subjects[s] {
			s = 0
		}
		w.t1.setEndpoint(a, EndpointRow{IfIndex: 1, Subject: uint64(s)})
	default:
		w.flush(1 + rng.IntN(6))
	}
}

// Whatever is wished, however often tables fail and however small they are: each
// single write leaves nothing that refers to what is not there, and no pod judged
// by less than its policy.
func TestPolicyTablesWriteInOrder(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 1))
				rows, subjects := 0, 0
				if seed%3 == 1 {
					rows, subjects = 6+rng.IntN(10), 2+rng.IntN(4)
				}
				w := &policyWishes{newPolicyRig(t, rows, subjects), map[int]bool{}, map[int]bool{}, map[Addr]int{}}
				for range 300 {
					w.step(rng)
					if seed%3 == 2 && rng.IntN(40) == 0 {
						for i, set := range w.faults {
							set(errorsOnly(RandomFaults(seed+uint64(i), 0.3)))
						}
					}
					if rng.IntN(20) == 0 {
						time.Sleep(time.Second)
					}
				}
				for _, set := range w.faults {
					set(NoFaults)
				}
				w.rest()
			})
		})
	}
}

func errorsOnly(f Schedule) Schedule {
	return func(op FaultOp, n, rows int) Fault {
		fault := f(op, n, rows)
		fault.Drift = 0
		return fault
	}
}

// rest lets everything settle, and compares the kernel with what is wished: all
// of it where it fits, and where it does not, closed.
func (w *policyWishes) rest() {
	w.t.Helper()
	for range 60 {
		time.Sleep(retryMax)
		w.flush(MaxBatch)
	}
	for a, wish := range w.t1.wishes.endpoints {
		row, there := w.endpoints.Get(a)
		subject, has := w.subjects2(wish.Subject)
		switch {
		case !there:
			w.fail("endpoint %v is missing", a)
		case row == wish && (wish.Subject == 0 || has && w.all(wish.Subject) != (subject.Flags&SubjectClosed != 0)):
		case row.Closed && !has && len(w.t1.subjects.stuck) > 0:
		default:
			w.fail("endpoint %v: %+v, subject %+v, wished %+v", a, row, subject, wish)
		}
	}
	if w.endpoints.Len() != len(w.t1.wishes.endpoints) || w.policy.size == 0 && w.policy.Len() != w.t1.policy.Len() || w.ips.Len() != w.t1.ips.Len() {
		w.fail("rows are left: %d endpoints, %d policy, %d addresses", w.endpoints.Len(), w.policy.Len(), w.ips.Len())
	}
}

func (w *policyWishes) subjects2(s uint64) (SubjectRow, bool) {
	return w.policyRig.subjects.Get(SubjectKey(s))
}

// all reports whether all rows of a subject are in the kernel.
func (w *policyWishes) all(s uint64) bool {
	for k := range w.t1.policy.wanted {
		if _, there := w.policy.Get(k); k.Subject == SubjectKey(s) && !there {
			return false
		}
	}
	return true
}

// A subject whose rows do not fit is closed, and so are pods whose subject does
// not; somebody is told; and when there is room, they open again.
func TestPolicyThatDoesNotFitIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &policyWishes{newPolicyRig(t, 1, 2), map[int]bool{}, map[int]bool{}, map[Addr]int{}}
		pod := func(i int) Addr { return MakeAddr(netip.AddrFrom4([4]byte{10, 1, 1, byte(i)})) }
		for id := 1; id <= 3; id++ {
			w.identity(id, true)
		}
		for s := 1; s <= 3; s++ {
			w.subject(s, true)
			w.t1.setEndpoint(pod(s), EndpointRow{IfIndex: uint32(s), Subject: uint64(s)})
		}
		for range 20 {
			time.Sleep(retryMax)
			w.flush(MaxBatch)
		}
		open := 0
		for a, row := range w.endpoints.Rows() {
			subject, _ := w.subjects2(row.Subject)
			if !row.Closed && subject.Flags&SubjectClosed == 0 {
				open++
				t.Logf("%v is open", a)
			}
		}
		if open > 0 || w.endpoints.Len() != 3 {
			t.Errorf("%d of %d pods are open", open, w.endpoints.Len())
		}
		if p := w.t1.policyProblems(); len(p) != 1 || !strings.Contains(p[0].What, "nothing passes to or from 3 pod addresses of this node: 10.1.1.1, 10.1.1.2, 10.1.1.3") {
			t.Errorf("problems: %v", p)
		}
		w.subject(2, false)
		w.t1.setEndpoint(pod(2), EndpointRow{IfIndex: 2})
		w.subject(3, false)
		w.t1.setEndpoint(pod(3), EndpointRow{IfIndex: 3})
		w.identity(1, false)
		w.identity(3, false)
		for range 20 {
			time.Sleep(retryMax)
			w.flush(MaxBatch)
		}
		if row, ok := w.subjects2(1); !ok || row.Flags != IsolatedIn || w.policy.Len() > 1 {
			t.Errorf("subject 1 is %+v (%v) with %d rows", row, ok, w.policy.Len())
		}
		if p := w.t1.policyProblems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
	})
}

// An epoch that cannot be counted up is counted up later, and is a problem meanwhile.
func TestEpochIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPolicyRig(t, 0, 0)
		r.epoch.OnNext(func() error { return errors.New("no") })
		r.t1.flush(MaxBatch)
		if p := r.t1.policyProblems(); len(p) != 1 || p[0].Why != "no" || r.t1.epoch.retryAt.IsZero() {
			t.Fatalf("problems %v, again at %v", p, r.t1.epoch.retryAt)
		}
		r.epoch.OnNext(nil)
		time.Sleep(time.Until(r.t1.epoch.retryAt))
		r.t1.flush(MaxBatch)
		if r.epoch.Now() != 1 || len(r.t1.policyProblems()) > 0 || !r.t1.epoch.retryAt.IsZero() {
			t.Errorf("epoch %d, %v", r.epoch.Now(), r.t1.policyProblems())
		}
	})
}
