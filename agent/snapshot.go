package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// A snapshot file holds what one cluster said in one scope:
//
//	magic      8 bytes, "TMBSNAP" and the version of the layout
//	header     4 bytes length, little endian; JSON
//	records    zstd of: uvarint length, key, uvarint length, value; …
//	checksum   SHA-256 of everything before
//
// It is written aside and renamed into place, so that a file is whole or it is
// damaged by something else. Records are as in the store, and are admitted again
// when they are read.
var snapshotMagic = [8]byte{'T', 'M', 'B', 'S', 'N', 'A', 'P', 1}

const (
	maxSnapshotHeader = 256 << 10
	maxSnapshotFile   = 1 << 30
	maxSnapshotKey    = 4 << 10
)

// snapshotHeader says whose records follow.
type snapshotHeader struct {
	Cluster string            `json:"cluster"`
	ID      clustermesh.ID    `json:"id"`
	Scope   clustermesh.Scope `json:"scope"`
	Own     string            `json:"own"`    // the cluster of the node that wrote it
	Marker  []byte            `json:"marker"` // the cluster record
	Written time.Time         `json:"written"`
}

func snapshotFile(dir, cluster string, scope clustermesh.Scope) string {
	return filepath.Join(dir, cluster+"."+string(scope)+".snapshot")
}

// snapshotRecords are the records of a view as the store would hold them,
// without the cluster record. The view may change while they are read.
func snapshotRecords(v *clustermesh.View) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		emit := func(r clustermesh.Record) bool {
			value, err := clustermesh.Encode(r)
			if err != nil {
				return true // it was decoded once; one record less is no reason to have none
			}
			return yield(clustermesh.KeyOf(v.Scope(), v.Name(), r).String(), value)
		}
		for r := range v.Nodes() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Services() {
			if !emit(r) {
				return
			}
		}
		for r := range v.AllSlices() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Addresses() {
			if !emit(&r) {
				return
			}
		}
		for r := range v.Identities() {
			if !emit(&r) {
				return
			}
		}
		for r := range v.Peers() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Workloads() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Policies() {
			if !emit(r) {
				return
			}
		}
	}
}

// appendRecord adds one record to a chunk of the file's plain content.
func appendRecord(b []byte, key string, value []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// writeSnapshot writes a file from chunks of plain content, until the channel
// closes; ok false = abandoned, the old file stays.
func writeSnapshot(dir string, h snapshotHeader, chunks <-chan []byte, abandoned <-chan struct{}) (err error) {
	defer func() {
		for range chunks { // never leave the sender behind
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, ".snapshot-*")
	if err != nil {
		return err
	}
	defer func() {
		file.Close()
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	out := bufio.NewWriterSize(file, 64<<10)
	sum := sha256.New()
	if err := writeBody(io.MultiWriter(out, sum), h, chunks); err != nil {
		return err
	}
	select {
	case <-abandoned:
		return errAbandoned
	default:
	}
	if _, err := out.Write(sum.Sum(nil)); err != nil {
		return err
	}
	if err := errors.Join(out.Flush(), file.Sync()); err != nil {
		return err
	}
	return os.Rename(file.Name(), snapshotFile(dir, h.Cluster, h.Scope))
}

var errAbandoned = errors.New("abandoned")

func writeBody(w io.Writer, h snapshotHeader, chunks <-chan []byte) error {
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(head)))
	for _, part := range [][]byte{snapshotMagic[:], size, head} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	packer, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(512<<10), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	for chunk := range chunks {
		if _, err := packer.Write(chunk); err != nil {
			packer.Close()
			return err
		}
	}
	return packer.Close()
}

// errNoSnapshot: there is no file, which is nothing to complain about.
var errNoSnapshot = errors.New("no snapshot")

// readSnapshot reads what a cluster said last in a scope. Every record passes
// admission as if it came from the store. The error says what is wrong with the
// file; none of a damaged file is used.
func readSnapshot(dir, own string, admission clustermesh.Admission, scope clustermesh.Scope) (u clustermesh.Update, err error) {
	name := snapshotFile(dir, admission.Cluster, scope)
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return u, errNoSnapshot
	}
	if err != nil {
		return u, err
	}
	if info.Size() > maxSnapshotFile {
		return u, fmt.Errorf("%d bytes are too many for a snapshot", info.Size())
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return u, err
	}
	return decodeSnapshot(raw, own, admission, scope)
}

func decodeSnapshot(raw []byte, own string, admission clustermesh.Admission, scope clustermesh.Scope) (u clustermesh.Update, err error) {
	h, packed, err := openSnapshot(raw)
	if err != nil {
		return u, err
	}
	switch {
	case h.Own != own:
		return u, fmt.Errorf("it was written by a node of cluster %q, this node is of cluster %q", h.Own, own)
	case h.Cluster != admission.Cluster || h.Scope != scope:
		return u, fmt.Errorf("it holds scope %q of cluster %q", h.Scope, h.Cluster)
	case h.ID != admission.ID:
		return u, fmt.Errorf("it is of a cluster with ID %d; %s has %d", h.ID, admission.Cluster, admission.ID)
	}
	reader := clustermesh.NewReader(clustermesh.ReaderConfig{
		Admission: admission, Scope: scope, Out: func(got clustermesh.Update) { u = got },
	})
	at := kvstore.Position{StoreID: 1, Revision: 1}
	if err := reader.Begin(at, h.Marker); err != nil {
		return clustermesh.Update{}, err
	}
	if err := feed(packed, func(events []kvstore.Event) error { return reader.Apply(at, events) }); err != nil {
		return clustermesh.Update{}, err
	}
	reader.Synced(at)
	u.Refused, u.RefusedTotal = nil, 0
	return u, nil
}

// openSnapshot checks a file as a whole and returns its header and records.
func openSnapshot(raw []byte) (h snapshotHeader, packed []byte, err error) {
	least := len(snapshotMagic) + 4 + sha256.Size
	if len(raw) < least {
		return h, nil, fmt.Errorf("%d bytes are too few for a snapshot: it was cut off", len(raw))
	}
	if !bytes.Equal(raw[:7], snapshotMagic[:7]) {
		return h, nil, errors.New("it is no snapshot of Tombolo")
	}
	if raw[7] != snapshotMagic[7] {
		return h, nil, fmt.Errorf("it has layout version %d; this agent reads version %d", raw[7], snapshotMagic[7])
	}
	body, sum := raw[:len(raw)-sha256.Size], raw[len(raw)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return h, nil, errors.New("its checksum is wrong: it was cut off or damaged")
	}
	size := binary.LittleEndian.Uint32(body[8:])
	rest := body[12:]
	if size > maxSnapshotHeader || int(size) > len(rest) {
		return h, nil, errors.New("its header is longer than the file")
	}
	if err := json.Unmarshal(rest[:size], &h); err != nil {
		return h, nil, fmt.Errorf("its header: %w", err)
	}
	return h, rest[size:], nil
}

// feed unpacks records and hands them over in chunks.
func feed(packed []byte, apply func([]kvstore.Event) error) error {
	unpacker, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer unpacker.Close()
	in := bufio.NewReaderSize(io.LimitReader(unpacker, maxSnapshotFile), 64<<10)
	events := make([]kvstore.Event, 0, 1000)
	for {
		key, err := readBytes(in, maxSnapshotKey)
		if errors.Is(err, io.EOF) {
			return apply(events)
		}
		if err == nil && len(key) == 0 {
			err = errors.New("an entry without a key")
		}
		if err != nil {
			return fmt.Errorf("its records: %w", err)
		}
		value, err := readBytes(in, kvstore.MaxValue)
		if err != nil {
			return fmt.Errorf("its records: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		events = append(events, kvstore.Event{KV: kvstore.KV{Key: string(key), Value: value, ModRevision: 1, CreateRevision: 1}})
		if len(events) == cap(events) {
			if err := apply(events); err != nil {
				return err
			}
			events = make([]kvstore.Event, 0, 1000)
		}
	}
}

func readBytes(in *bufio.Reader, limit uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("an entry of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

// setAside renames a file that cannot be used, so that it can be looked at and
// is not tried again. It returns the new name.
func setAside(dir, cluster string, scope clustermesh.Scope) string {
	name := snapshotFile(dir, cluster, scope)
	aside := name + ".bad"
	if err := os.Rename(name, aside); err != nil {
		os.Remove(name)
		return name
	}
	return aside
}

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

// loadSnapshots reads what a cluster said last, aside, and hands it to the owner
// unless the cluster itself has spoken by then. When the kernel was empty at the
// start (a reboot) that happens at once; after a mere restart of the agent the
// kernel goes on by itself and knows better than a file, so the store is given a
// moment to answer first.
func (a *Agent) loadSnapshots(ctx context.Context, c *clusterState) {
	if a.cfg.SnapshotDir == "" {
		return
	}
	wait := time.Duration(0)
	if a.kernelHadRows {
		wait = snapshotGrace
	}
	admission, peer := c.admission(), c.peer
	for _, scope := range c.scopes() {
		a.stopping.Go(func() {
			u, err := readSnapshot(a.cfg.SnapshotDir, a.cfg.Cluster, admission, scope)
			if errors.Is(err, errNoSnapshot) {
				return
			}
			var aside string
			if err != nil {
				aside = setAside(a.cfg.SnapshotDir, admission.Cluster, scope)
			} else {
				select {
				case <-ctx.Done():
					return
				case <-time.After(wait):
				}
			}
			a.post(ctx, func() { a.takeSnapshot(u, err, aside, admission.Cluster, scope, peer) })
		})
	}
}

// snapshotGrace is how long a store may take to answer before the snapshot
// speaks for it, when the kernel is at work already.
const snapshotGrace = time.Second

func (a *Agent) takeSnapshot(u clustermesh.Update, err error, aside, cluster string, scope clustermesh.Scope, peer *clustermesh.Peer) {
	if err != nil {
		a.log.Warn("snapshot cannot be used", "cluster", cluster, "scope", string(scope), "err", err, "aside", aside)
		a.problems["snapshot "+cluster+" "+string(scope)] = clustermesh.Problem{
			What: fmt.Sprintf("the snapshot of cluster %s (scope %s) cannot be used", cluster, scope),
			Why:  err.Error(),
			Fix:  fmt.Sprintf("nothing has to be done: a new one is written once the cluster is in reach. The old file is kept as %s; delete it when you have looked at it", aside),
		}
		return
	}
	c := a.state.clusters[cluster]
	if c == nil || c.views[scope] != nil || !samePeer(c.peer, peer) {
		return
	}
	a.log.Info("cluster has not answered yet; using what it said last", "cluster", cluster, "scope", string(scope))
	a.fromSnapshot[viewName{cluster, scope}] = true
	a.state.Apply(u, false)
}
