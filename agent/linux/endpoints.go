package linux

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// EndpointReport is what the cluster is told of a pod.
type EndpointReport struct {
	Namespace, Name, UID string
	Addresses            []netip.Addr
	Ready                bool
	Remove               bool // the pod is gone
}

// ReportFunc tells the cluster; it answers with the pod's identity.
type ReportFunc func(context.Context, EndpointReport) (clustermesh.Identity, error)

const (
	reportRetryFirst = 250 * time.Millisecond
	reportRetryMost  = 30 * time.Second
	// reportAgain is how often the same is said once more, give or take a fifth,
	// for a cluster that has lost it.
	reportAgain = 5 * time.Minute
	// mostDeparted bounds the list of removals that wait for a cluster out of reach.
	mostDeparted = 4096
)

// told is the state of one pod's reports, known to Report's goroutine alone.
type told struct {
	ready bool
	again time.Time     // when the same is said once more; zero = never said
	retry time.Time     // not before
	wait  time.Duration // the next pause after a failure
}

// Report keeps the cluster told of all pods, also those from before a restart,
// until ctx ends. Pods work locally meanwhile: nothing waits for it.
func (p *Pods) Report(ctx context.Context, report ReportFunc) {
	state := map[string]*told{}
	asked := p.again.Load()
	for {
		if n := p.again.Load(); n != asked {
			asked = n
			for _, st := range state {
				st.again = time.Time{}
			}
		}
		now := p.cfg.Now()
		next := now.Add(reportAgain)
		work := p.reports()
		for uid := range state {
			if !slices.ContainsFunc(work, func(r EndpointReport) bool { return r.UID == uid }) {
				delete(state, uid)
			}
		}
		for _, r := range work {
			st := state[r.UID]
			if st == nil {
				st = &told{wait: reportRetryFirst}
				state[r.UID] = st
			}
			due := st.due(r, now)
			if !due.After(now) {
				due = p.reportOne(ctx, report, r, st)
				if ctx.Err() != nil {
					return
				}
			}
			if due.Before(next) {
				next = due
			}
		}
		timer := time.NewTimer(max(next.Sub(p.cfg.Now()), 10*time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-p.wake:
		}
		timer.Stop()
	}
}

// due is when r is to be reported.
func (st *told) due(r EndpointReport, now time.Time) time.Time {
	switch {
	case st.retry.After(now):
		return st.retry
	case r.Remove || st.ready != r.Ready:
		return now
	}
	return st.again
}

// reportOne makes one attempt and says when the next is due.
func (p *Pods) reportOne(ctx context.Context, report ReportFunc, r EndpointReport, st *told) time.Time {
	id, err := report(ctx, r)
	now := p.cfg.Now()
	if err != nil {
		if ctx.Err() == nil {
			p.log.Warn("pod not reported to the cluster; it works on, others may not find it yet", "uid", r.UID, "namespace", r.Namespace, "name", r.Name, "remove", r.Remove, "err", err, "retry", st.wait)
		}
		st.retry = now.Add(st.wait*4/5 + rand.N(st.wait*2/5))
		st.wait = min(st.wait*2, reportRetryMost)
		return st.retry
	}
	st.ready, st.retry, st.wait = r.Ready, time.Time{}, reportRetryFirst
	st.again = now.Add(reportAgain*4/5 + rand.N(reportAgain*2/5))
	p.reported(r, id)
	return st.again
}

// reports is what the cluster should know, removals first: an address may have
// gone from one pod to another.
func (p *Pods) reports() []EndpointReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]EndpointReport, 0, len(p.departed)+len(p.pods))
	for _, d := range p.departed {
		out = append(out, EndpointReport{Namespace: d.Namespace, Name: d.Name, UID: d.UID, Addresses: d.Addresses, Remove: true})
	}
	for _, r := range p.pods {
		if r.Name == "" {
			continue // learned from its device: nothing is known to report until its next ADD
		}
		out = append(out, EndpointReport{Namespace: r.Namespace, Name: r.Name, UID: r.UID, Addresses: r.Addresses, Ready: r.Gone.IsZero() && !p.unready[r.UID]})
	}
	return out
}

// reported takes note of a success.
func (p *Pods) reported(r EndpointReport, id clustermesh.Identity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Remove {
		p.departed = slices.DeleteFunc(p.departed, func(d departed) bool { return d.UID == r.UID })
		if err := p.save(); err != nil {
			p.log.Error("removal of a pod was reported and could not be noted; it is reported again", "uid", r.UID, "err", err)
		}
		return
	}
	rec := p.pods[r.UID]
	if rec == nil || rec.Identity == id {
		return
	}
	rec.Identity = id
	if err := p.save(); err != nil {
		p.log.Error("identity of a pod could not be noted", "uid", r.UID, "err", err)
	}
	if p.cfg.Changed != nil {
		p.cfg.Changed(p.local())
	}
}

// ReportAgain has Report tell the cluster of all pods once more, soon: it may
// have lost what it was told.
func (p *Pods) ReportAgain() {
	p.again.Add(1)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// SetReady says whether a pod passes its readiness probe; pods are ready until
// something else is said.
func (p *Pods) SetReady(uid string, ready bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pods[uid] == nil || p.unready[uid] == !ready {
		return
	}
	if ready {
		delete(p.unready, uid)
	} else {
		p.unready[uid] = true
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
