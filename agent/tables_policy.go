package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// wishes are the subjects and endpoints as they should be once everything that
// they need is in the kernel. What the tables want of them is the same, or closed
// while a full table keeps that out.
type wishes struct {
	subjects   map[SubjectKey]SubjectRow
	endpoints  map[Addr]EndpointRow
	incomplete map[SubjectKey]bool // closed: policy rows do not fit
	homeless   map[Addr]bool       // closed: the subject does not fit
}

func newWishes() wishes {
	return wishes{subjects: map[SubjectKey]SubjectRow{}, endpoints: map[Addr]EndpointRow{}}
}

func (t *tableSet) setSubject(k SubjectKey, v SubjectRow) {
	t.wishes.subjects[k] = v
	t.wantSubject(k)
}

func (t *tableSet) deleteSubject(k SubjectKey) {
	delete(t.wishes.subjects, k)
	t.wantSubject(k)
}

func (t *tableSet) wantSubject(k SubjectKey) {
	v, wished := t.wishes.subjects[k]
	if !wished {
		t.subjects.Delete(k)
		return
	}
	if t.wishes.incomplete[k] {
		v.Flags |= SubjectClosed
	}
	t.subjects.Set(k, v)
}

func (t *tableSet) setEndpoint(k Addr, v EndpointRow) {
	t.wishes.endpoints[k] = v
	t.wantEndpoint(k)
}

func (t *tableSet) deleteEndpoint(k Addr) {
	delete(t.wishes.endpoints, k)
	t.wantEndpoint(k)
}

func (t *tableSet) wantEndpoint(k Addr) {
	v, wished := t.wishes.endpoints[k]
	if !wished {
		t.endpoints.Delete(k)
		return
	}
	if t.wishes.homeless[k] {
		v.Subject, v.Closed = 0, true
	}
	t.endpoints.Set(k, v)
}

// closeSubjects closes those whose policy rows have no room: nothing passes that
// policy might forbid. One that is refused for another reason is tried again
// soon, and until then the rows before it stay in force.
func (t *tableSet) closeSubjects() {
	before := t.wishes.incomplete
	now := map[SubjectKey]bool{}
	if errors.Is(t.policy.Problem(), ErrFull) {
		for k := range t.policy.stuck {
			if _, wanted := t.policy.wanted[k]; wanted {
				now[k.Subject] = true
			}
		}
	}
	t.wishes.incomplete = now
	again(before, now, t.wantSubject)
	if len(now) > 0 {
		t.subjects.FlushPuts(len(now), func(k SubjectKey, _ SubjectRow) bool { return now[k] })
	}
}

// closeEndpoints closes the pods whose subject has no room.
func (t *tableSet) closeEndpoints() {
	before := t.wishes.homeless
	now := map[Addr]bool{}
	if errors.Is(t.subjects.Problem(), ErrFull) {
		for k, v := range t.wishes.endpoints {
			if v.Subject == 0 {
				continue
			}
			if _, stuck := t.subjects.stuck[SubjectKey(v.Subject)]; stuck {
				now[k] = true
			}
		}
	}
	t.wishes.homeless = now
	again(before, now, t.wantEndpoint)
}

// again calls f for what is in one of two sets alone.
func again[K comparable](a, b map[K]bool, f func(K)) {
	for k := range a {
		if !b[k] {
			f(k)
		}
	}
	for k := range b {
		if !a[k] {
			f(k)
		}
	}
}

// inForce reports whether pods may be judged by a subject's rows now.
func (t *tableSet) inForce(k SubjectKey) bool {
	v, there := t.subjects.Actual(k)
	if there {
		return v.Flags&SubjectClosed == 0
	}
	// A write failed half way: it counts if pods were given it before.
	a, differs := t.subjects.differs(k)
	return differs && a.state == unknown && t.hasPods(k)
}

// hasPods reports whether a pod in the kernel may have a subject.
func (t *tableSet) hasPods(k SubjectKey) (has bool) {
	for a := range t.endpoints.wanted {
		if row, there := t.endpoints.Actual(a); there && row.Subject == uint64(k) {
			return true
		}
	}
	sides(t.endpoints, true, func(v EndpointRow) { has = has || v.Subject == uint64(k) })
	return has || uncertain(t.endpoints)
}

// meant tells which policy rows may enter: not those of an identity that in the
// kernel's ipcache still means what it meant before.
func (t *tableSet) meant() func(PolicyKey, PolicyRow) bool {
	old := map[PolicyPeer]bool{}
	dropping(t.ips, old)
	dropping(t.ipPrefixes, old)
	if len(old) == 0 {
		return nil
	}
	return func(k PolicyKey, _ PolicyRow) bool { return !old[k.Peer] }
}

func dropping[K comparable](d *Delta[K, IPCacheRow], into map[PolicyPeer]bool) {
	for k := range d.drops {
		if a, differs := d.differs(k); differs {
			into[PolicyPeer(a.value.Identity)] = true
		}
	}
}

// undecided are identities and classes that a subject in force has not all rows
// of yet: an address must not be known by them before.
func (t *tableSet) undecided() map[PolicyPeer]bool {
	out := map[PolicyPeer]bool{}
	if t.policy.Pending() == 0 {
		return out
	}
	for k, rows := range t.policy.pending() {
		_, wanted := t.wishes.subjects[k.Subject]
		if k.Peer != PeerAny && (rows[1] != nil || wanted) && !out[k.Peer] && t.inForce(k.Subject) {
			out[k.Peer] = true
		}
	}
	return out
}

// unnamed tells which policy rows the kernel can do without: their subject is
// not there, or is wanted without them and no address in the kernel is known by
// that identity or class.
func (t *tableSet) unnamed() func(PolicyKey, PolicyRow) bool {
	if len(t.policy.leaving) == 0 && len(t.policy.stuck) == 0 {
		return nil
	}
	named := map[PolicyPeer]bool{}
	for _, note := range []func(leaving bool, set func(PolicyPeer)){
		func(leaving bool, set func(PolicyPeer)) {
			sides(t.ips, leaving, func(v IPCacheRow) { set(PolicyPeer(v.Identity)) })
		},
		func(leaving bool, set func(PolicyPeer)) {
			sides(t.ipPrefixes, leaving, func(v IPCacheRow) { set(PolicyPeer(v.Identity)) })
		},
		func(leaving bool, set func(PolicyPeer)) { sides(t.classes, leaving, func(v ClassRow) { set(v.ID) }) },
		func(leaving bool, set func(PolicyPeer)) {
			sides(t.classPrefixes, leaving, func(v ClassRow) { set(v.ID) })
		},
	} {
		note(true, func(p PolicyPeer) { named[p] = true })
		note(false, func(p PolicyPeer) { delete(named, p) }) // comes as well as goes: two that change places wait for nobody
	}
	lost := uncertain(t.ips) || uncertain(t.ipPrefixes) || uncertain(t.classes) || uncertain(t.classPrefixes)
	return func(k PolicyKey, _ PolicyRow) bool {
		if !t.inForce(k.Subject) {
			return true
		}
		_, wanted := t.wishes.subjects[k.Subject]
		return wanted && !named[k.Peer] && !lost
	}
}

// uncertain reports whether a write failed half way: the kernel may then hold a
// row that is wanted no more, and that is not known.
func uncertain[K, V comparable](d *Delta[K, V]) bool {
	for _, m := range []map[K]actual[V]{d.stuck, d.dirty, d.leaving} {
		for _, a := range m {
			if a.state == unknown {
				return true
			}
		}
	}
	return false
}

// sides calls f with the rows that the kernel may hold and should not, or not so,
// and those held; or (not leaving) with those that are to enter.
func sides[K, V comparable](d *Delta[K, V], leaving bool, f func(V)) {
	if d.Pending() > 0 {
		for _, rows := range d.pending() {
			if leaving && rows[0] != nil {
				f(*rows[0])
			}
			if !leaving && rows[1] != nil {
				f(*rows[1])
			}
		}
	}
	if leaving {
		for _, v := range d.held {
			f(v)
		}
	}
}

// decided tells which subjects have all their policy rows in the kernel.
func (t *tableSet) decided() func(SubjectKey, SubjectRow) bool {
	waiting := t.lacking()
	return func(k SubjectKey, v SubjectRow) bool { return v.Flags&SubjectClosed != 0 || !waiting[k] }
}

// lacking are the subjects with policy rows that are still to be written.
func (t *tableSet) lacking() map[SubjectKey]bool {
	out := map[SubjectKey]bool{}
	entering(t.policy, out, func(k PolicyKey) SubjectKey { return k.Subject })
	return out
}

// withSubject tells which endpoints have theirs in the kernel, and all its rows:
// one that entered complete may since lack a row that was refused, and an address
// that could not be removed may be known by that row's identity. Pods that have
// the subject are no worse off for being written again; nobody else gets it.
func (t *tableSet) withSubject() func(Addr, EndpointRow) bool {
	waiting := t.lacking()
	return func(a Addr, v EndpointRow) bool {
		if v.Subject == 0 {
			return true
		}
		k := SubjectKey(v.Subject)
		subject, there := t.subjects.Actual(k)
		if !there {
			return false
		}
		if v.Closed || subject.Flags&SubjectClosed != 0 || !waiting[k] {
			return true
		}
		before, had := t.endpoints.Actual(a)
		return had && !before.Closed && before.Subject == v.Subject
	}
}

// abandoned tells which subjects no pod in the kernel may still have.
func (t *tableSet) abandoned() func(SubjectKey, SubjectRow) bool {
	if len(t.subjects.leaving) == 0 && len(t.subjects.stuck) == 0 {
		return nil
	}
	had := map[SubjectKey]bool{}
	sides(t.endpoints, true, func(v EndpointRow) { had[SubjectKey(v.Subject)] = true })
	for _, v := range t.endpoints.wanted {
		had[SubjectKey(v.Subject)] = true
	}
	lost := uncertain(t.endpoints)
	return func(k SubjectKey, _ SubjectRow) bool { return !had[k] && !lost }
}

// verdictWrites counts the writes of rows that verdicts depend on; failed ones
// may have taken effect.
func (t *tableSet) verdictWrites() (n uint64) {
	for _, d := range []anyDelta{t.policy, t.ipPrefixes, t.ips, t.classPrefixes, t.classes, t.subjects, t.endpoints} {
		written, removed, failures, _ := d.counts()
		n += written + removed + failures
	}
	return n
}

// epochTrack counts the kernel's epoch up after such writes. due also at the
// start: the agent before may have ended between the two.
type epochTrack struct {
	epoch   Epoch
	due     bool
	err     error
	retryAt time.Time
	backoff time.Duration
}

func (e *epochTrack) flush(changed bool) {
	e.due = e.due || changed
	if !e.due || !changed && time.Now().Before(e.retryAt) {
		return
	}
	if e.err = e.epoch.Next(); e.err != nil {
		e.backoff = min(max(2*e.backoff, retryFirst), retryMax)
		e.retryAt = time.Now().Add(e.backoff)
		return
	}
	e.due, e.retryAt, e.backoff = false, time.Time{}, 0
}

// policyProblems are what full tables do to pods.
func (t *tableSet) policyProblems() (out []clustermesh.Problem) {
	var pods []string
	for _, k := range slices.SortedFunc(maps.Keys(t.wishes.endpoints), compareAddrs) {
		if t.wishes.homeless[k] || t.wishes.incomplete[SubjectKey(t.wishes.endpoints[k].Subject)] {
			pods = append(pods, k.String())
		}
	}
	if len(pods) > 0 {
		out = append(out, clustermesh.Problem{
			What: fmt.Sprintf("nothing passes to or from %d pod addresses of this node: %s", len(pods), shortList(pods)),
			Why:  "the rows of their policy do not fit into the kernel's tables, and without them nobody knows what is forbidden",
			Fix:  "give the agent larger tables " + TablePolicy + " and " + TableSubjects + " and restart it, or make the policies smaller",
		})
	}
	if t.epoch.err != nil {
		out = append(out, clustermesh.Problem{
			What: "open connections are not judged anew after a change of policy", Why: t.epoch.err.Error(),
			Fix: "it is tried again by itself; see the log of the agent and of the kernel",
		})
	}
	return out
}

// shortList names the first few.
func shortList(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
}
