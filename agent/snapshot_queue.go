package agent

import (
	"errors"
	"iter"
	"os"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Times of the snapshot writer: a snapshot follows the last change by at least
// quiet, and the first one by at most late, and never begins sooner after the
// one before than rest times what that one took.
const (
	snapshotQuiet = time.Second
	snapshotLate  = 10 * time.Second
	snapshotRest  = 20
	snapshotSlice = 400 // records encoded in one go, so that nothing waits longer
)

type viewName struct {
	cluster string
	scope   clustermesh.Scope
}

// snapshots decides when to write which file, and feeds the writer piece by
// piece from the owner goroutine: encoding a piece is cheap, everything else
// happens in a goroutine of its own.
type snapshots struct {
	dir, own string
	dirty    map[viewName]*changedView
	present  *writing
	nextAt   time.Time
}

type changedView struct{ first, last time.Time }

type writing struct {
	name    viewName
	began   time.Time
	next    func() (string, []byte, bool)
	stop    func()
	chunks  chan []byte
	abandon chan struct{}
	ended   bool
	result  chan error
}

func (s *snapshots) changed(cluster string, scope clustermesh.Scope) {
	if s.dir == "" {
		return
	}
	now, k := time.Now(), viewName{cluster, scope}
	if d := s.dirty[k]; d != nil {
		d.last = now
		return
	}
	s.dirty[k] = &changedView{now, now}
}

// forget removes what a cluster that was removed left behind.
func (s *snapshots) forget(cluster string) {
	if s.dir == "" {
		return
	}
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
		delete(s.dirty, viewName{cluster, scope})
		if s.present != nil && s.present.name.cluster == cluster {
			s.close(true)
		}
		os.Remove(snapshotFile(s.dir, cluster, scope))
	}
}

// due is when the next snapshot should begin; zero = none is wanted.
func (s *snapshots) due() (viewName, time.Time) {
	var best viewName
	var at time.Time
	for k, d := range s.dirty {
		t := d.last.Add(snapshotQuiet)
		if late := d.first.Add(snapshotLate); late.Before(t) {
			t = late
		}
		if t.Before(s.nextAt) {
			t = s.nextAt
		}
		if at.IsZero() || t.Before(at) {
			best, at = k, t
		}
	}
	return best, at
}

// step does a piece of the work that is due. It reports whether more can be
// done at once, and when to come again (zero: on the next change). done is
// called by the writer when it ends.
func (s *snapshots) step(now time.Time, view func(viewName) (*clustermesh.View, clustermesh.ID), done func()) (more bool, again time.Time, err error) {
	if s.dir == "" {
		return false, time.Time{}, nil
	}
	if s.present == nil {
		k, at := s.due()
		if at.IsZero() || at.After(now) {
			return false, at, nil
		}
		delete(s.dirty, k)
		v, id := view(k)
		if v == nil || v.Cluster() == nil {
			return true, time.Time{}, nil
		}
		if err := s.begin(k, v, id, now, done); err != nil {
			return false, time.Time{}, err
		}
	}
	return s.feed(now)
}

func (s *snapshots) begin(k viewName, v *clustermesh.View, id clustermesh.ID, now time.Time, done func()) error {
	marker, err := clustermesh.Encode(v.Cluster())
	if err != nil {
		return err
	}
	h := snapshotHeader{Cluster: k.cluster, ID: id, Scope: k.scope, Own: s.own, Marker: marker, Written: now.UTC()}
	w := &writing{name: k, began: now, chunks: make(chan []byte, 2), abandon: make(chan struct{}), result: make(chan error, 1)}
	w.next, w.stop = iter.Pull2(snapshotRecords(v))
	s.present = w
	go func() {
		w.result <- writeSnapshot(s.dir, h, w.chunks, w.abandon)
		done()
	}()
	return nil
}

// feed gives the writer the next piece, if it has taken the one before.
func (s *snapshots) feed(now time.Time) (more bool, again time.Time, err error) {
	w := s.present
	select {
	case err := <-w.result:
		s.finish(now)
		return true, time.Time{}, ignoreAbandoned(err)
	default:
	}
	if w.ended {
		return false, time.Time{}, nil // the writer calls when it is done
	}
	if len(w.chunks) == cap(w.chunks) {
		return false, now.Add(time.Millisecond), nil
	}
	var chunk []byte
	for range snapshotSlice {
		key, value, ok := w.next()
		if !ok {
			w.ended = true
			break
		}
		chunk = appendRecord(chunk, key, value)
	}
	w.chunks <- chunk
	if w.ended {
		w.stop()
		close(w.chunks)
	}
	return !w.ended, time.Time{}, nil
}

func ignoreAbandoned(err error) error {
	if errors.Is(err, errAbandoned) {
		return nil
	}
	return err
}

func (s *snapshots) finish(now time.Time) {
	w := s.present
	s.close(false)
	s.nextAt = now.Add(min(snapshotRest*now.Sub(w.began), snapshotLate))
}

// close ends the present writing; abandon leaves the old file in place.
func (s *snapshots) close(abandon bool) {
	w := s.present
	if w == nil {
		return
	}
	if abandon {
		close(w.abandon)
	}
	if !w.ended {
		w.ended = true
		w.stop()
		close(w.chunks)
	}
	if abandon {
		<-w.result
	}
	s.present = nil
}
