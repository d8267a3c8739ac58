package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// connectRetry is the pause after the Connector itself failed.
const connectRetry = time.Second

// follower follows one cluster: one kvstore.Follow for each scope, all on the
// same stores. What they hear goes to the owner through deliver, in order.
type follower struct {
	admission clustermesh.Admission
	scopes    []clustermesh.Scope
	peer      *clustermesh.Peer // nil = own cluster
	connector Connector
	deliver   func(ctx context.Context, f *follower, u clustermesh.Update)
	log       *slog.Logger
	quiet     *quietLog

	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex
	status  map[clustermesh.Scope]kvstore.FollowStatus
	connect error     // why the Connector failed; nil = it did not
	stands  bool      // every scope is connected
	since   time.Time // when stands last changed: attempts in between do not count
}

func (f *follower) start(ctx context.Context) {
	ctx, f.stop = context.WithCancel(ctx)
	f.status = map[clustermesh.Scope]kvstore.FollowStatus{}
	if f.since.IsZero() {
		f.since = time.Now()
	}
	f.done.Go(func() {
		for ctx.Err() == nil {
			f.run(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(connectRetry):
			}
		}
	})
}

// run connects and follows until ctx ends or the Connector fails.
func (f *follower) run(ctx context.Context) {
	stores, closeStores, err := f.connector.Stores(ctx, f.admission.Cluster, f.peer)
	f.mu.Lock()
	f.connect = err
	f.mu.Unlock()
	if err != nil {
		f.quiet.failed("connect "+f.admission.Cluster, "cannot connect to cluster; trying again", err, "cluster", f.admission.Cluster)
		return
	}
	f.quiet.works("connect "+f.admission.Cluster, "cluster can be connected to again", "cluster", f.admission.Cluster)
	if closeStores != nil {
		defer closeStores()
	}
	var follows sync.WaitGroup
	for _, scope := range f.scopes {
		follows.Go(func() { f.follow(ctx, stores, scope) })
	}
	follows.Wait()
}

func (f *follower) follow(ctx context.Context, stores []kvstore.Store, scope clustermesh.Scope) {
	r := clustermesh.NewReader(clustermesh.ReaderConfig{
		Admission: f.admission, Scope: scope, Log: f.log,
		Out: func(u clustermesh.Update) { f.deliver(ctx, f, u) },
	})
	err := kvstore.Follow(ctx, kvstore.FollowConfig{
		Stores: stores, Prefix: r.Prefix(), Marker: r.Marker(), Complete: r.Complete, Sink: r,
		Log:    f.log.With("cluster", f.admission.Cluster, "scope", string(scope)),
		Status: func(s kvstore.FollowStatus) { f.note(scope, s, nil) },
	})
	if ctx.Err() == nil {
		f.note(scope, kvstore.FollowStatus{}, err)
		f.quiet.failed("follow "+f.admission.Cluster, "following ended; beginning again", err, "cluster", f.admission.Cluster)
	}
}

// note takes in where the Follow of one scope stands, or why it ended.
func (f *follower) note(scope clustermesh.Scope, s kvstore.FollowStatus, ended error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ended != nil {
		f.connect = ended
		s.Position, s.Lists = f.status[scope].Position, f.status[scope].Lists
	}
	f.status[scope] = s
	stands := true
	for _, scope := range f.scopes {
		stands = stands && f.status[scope].Connected
	}
	if stands != f.stands {
		f.stands, f.since = stands, time.Now()
		if stands {
			f.quiet.works("follow "+f.admission.Cluster, "cluster is followed again", "cluster", f.admission.Cluster)
		}
	}
}

// followStatus is where a follower stands, over all its scopes.
type followStatus struct {
	Connected bool
	Synced    bool
	Since     time.Time // of the present state of the connection
	Position  kvstore.Position
	Lists     int
	LastError error
}

func (f *follower) state() followStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := followStatus{Connected: f.stands, Synced: true, Since: f.since, LastError: f.connect}
	for _, scope := range f.scopes {
		s, ok := f.status[scope]
		out.Synced = out.Synced && ok && s.Synced
		if s.Position.Revision > out.Position.Revision {
			out.Position = s.Position
		}
		out.Lists += s.Lists
		if s.LastError != nil {
			out.LastError = s.LastError
		}
	}
	return out
}

// syncFollowers starts and stops followers so that there is one for each
// cluster of the state, with what it is admitted for at present.
func (a *Agent) syncFollowers(ctx context.Context) {
	stale := map[string]time.Time{} // of followers replaced: what is known of the cluster is no fresher for it
	for name, f := range a.followers {
		c := a.state.clusters[name]
		if c == nil || !samePeer(c.peer, f.peer) {
			f.stop()
			delete(a.followers, name)
			a.stopping.Go(f.done.Wait)
			if before := f.state(); !before.Connected {
				stale[name] = before.Since
			}
			if c == nil {
				a.quiet.forget("connect " + name)
				a.quiet.forget("follow " + name)
				delete(a.lost, name)
				delete(a.refused, name)
				a.snapshots.forget(name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.state.clusters)) {
		if a.followers[name] != nil {
			continue
		}
		c := a.state.clusters[name]
		f := &follower{
			admission: c.admission(), scopes: c.scopes(), peer: c.peer, connector: a.cfg.Connector,
			deliver: a.deliver, log: a.log, quiet: a.quiet, since: stale[name],
		}
		a.followers[name] = f
		f.start(ctx)
		a.loadSnapshots(ctx, c)
	}
}

func (c *clusterState) admission() clustermesh.Admission {
	if c.peer == nil {
		return clustermesh.Admission{Cluster: c.name, ID: c.id, Local: true}
	}
	return clustermesh.AdmissionOf(c.peer)
}

// samePeer compares what matters for following: not the origin.
func samePeer(a, b *clustermesh.Peer) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.Origin, y.Origin = 0, 0
	return reflect.DeepEqual(x, y)
}

// deliver hands an update to the owner, from a follower's goroutine. It blocks
// while the owner is busy: the store's flow control holds the rest back.
func (a *Agent) deliver(ctx context.Context, f *follower, u clustermesh.Update) {
	a.post(ctx, func() {
		if a.followers[u.Cluster] == f {
			a.take(u)
		}
	})
}

// take is the owner's way in for what a store says.
func (a *Agent) take(u clustermesh.Update) {
	if u.Lost != nil {
		a.lost[u.Cluster] = lostNote{err: u.Lost}
		a.noteRefused(u, nil)
		return
	}
	delete(a.lost, u.Cluster)
	for _, ch := range u.Changes {
		if ch.Record != nil && ch.Record.Since() != 0 && len(a.origins) < maxOrigins {
			a.origins = append(a.origins, ch.Record.Since())
		}
	}
	refused := a.state.Apply(u, true)
	a.noteRefused(u, refused)
	if u.View != nil || len(u.Changes) > 0 {
		a.snapshots.changed(u.Cluster, u.Scope)
	}
}

type lostNote struct{ err error }

// refusals are the records of one cluster that were not believed.
type refusals struct {
	counts map[clustermesh.RefusalClass]uint64
	sample map[clustermesh.Scope][]clustermesh.Refusal // of the last complete list and since
}

const maxRefusalSample = 10

func (a *Agent) noteRefused(u clustermesh.Update, more []clustermesh.Refusal) {
	r := a.refused[u.Cluster]
	if r == nil {
		r = &refusals{counts: map[clustermesh.RefusalClass]uint64{}, sample: map[clustermesh.Scope][]clustermesh.Refusal{}}
		a.refused[u.Cluster] = r
	}
	if u.View != nil {
		delete(r.sample, u.Scope)
	}
	for class, n := range u.RefusedByClass {
		r.counts[class] += n
	}
	for _, refusal := range more {
		r.counts[refusal.Class]++
	}
	for _, list := range [][]clustermesh.Refusal{u.Refused, more} {
		for _, refusal := range list {
			if len(r.sample[u.Scope]) < maxRefusalSample {
				r.sample[u.Scope] = append(r.sample[u.Scope], refusal)
			}
		}
	}
}

// problems of one cluster's refused records.
func (r *refusals) problem(cluster string) (clustermesh.Problem, bool) {
	n := 0
	var first *clustermesh.Refusal
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
		for i := range r.sample[scope] {
			n++
			if first == nil {
				first = &r.sample[scope][i]
			}
		}
	}
	if first == nil {
		return clustermesh.Problem{}, false
	}
	more := ""
	if n == maxRefusalSample {
		more = " at least"
	}
	return clustermesh.Problem{
		What: fmt.Sprintf("cluster %s: %s%d records are not believed", cluster, more, n),
		Why:  first.String(),
		Fix:  "the last good records stay in force; look at " + cluster + "'s mesh API server: its records must lie within what it was admitted for",
	}, true
}
