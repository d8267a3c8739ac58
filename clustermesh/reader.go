package clustermesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Bounds of what an Update carries about refused records.
const (
	maxRefusals = 100    // told in words
	maxCarried  = 20_000 // keys whose last good record is kept across a list
)

// Change is one upsert or delete of a record that was admitted.
type Change struct {
	Key    Key
	Record Record // nil = delete
}

// Update is what a Reader tells the owner of the views. Pass it to Into.
type Update struct {
	Cluster     string
	Scope       Scope
	Incarnation uint64 // of the cluster, as of the last complete list
	Position    kvstore.Position
	// View is a whole new view after a complete list; it passes to the receiver.
	View *View
	// Changes are what changed since, in the order of the store.
	Changes []Change
	// Lost: there is no connection at present, and why. Nothing is deleted.
	Lost error
	// Refused are the first of the records that were not believed;
	// RefusedTotal counts them all, RefusedByClass (nil = none) by their class.
	Refused        []Refusal
	RefusedTotal   int
	RefusedByClass map[RefusalClass]uint64
}

// ReaderConfig makes a Reader.
type ReaderConfig struct {
	Admission Admission
	// Scope to read: export (default), local (of the own cluster), or mirror.
	Scope Scope
	// Kinds are those to keep, beside the cluster's own record; nil = all. The
	// others are not even decoded.
	Kinds []Kind
	// Out receives every Update, in order, in the goroutine that feeds the
	// Reader; it may block.
	Out func(Update)
	Log *slog.Logger // nil = discard
}

// Reader turns what kvstore.Follow delivers of one cluster in one scope into
// Updates: from Begin to Synced it builds a fresh View aside, at Synced it hands
// that over whole, and afterwards it hands over decoded, admitted changes.
//
//	r := clustermesh.NewReader(cfg)
//	kvstore.Follow(ctx, kvstore.FollowConfig{
//		Stores: stores, Prefix: r.Prefix(), Marker: r.Marker(), Complete: r.Complete, Sink: r,
//	})
//
// A peer is read by one Reader (scope export, or mirror). The own cluster is
// read by two, scope export and scope local, each with its own Follow and View;
// both have the cluster record in scope export as their marker, and Merge takes
// the second view as Home.
type Reader struct {
	cfg         ReaderConfig
	prefix      string
	decoder     *decoder
	fresh       *View // between Begin and Synced
	incarnation uint64

	// What was refused since the last Update: the words are of the list under
	// way, the numbers of everything, broken lists too.
	refused        []Refusal
	refusedTotal   int
	refusedByClass map[RefusalClass]uint64

	counts [len(refusalClasses)]atomic.Uint64

	sayingSince  time.Time // the present time of counting log lines
	said, unsaid int       // in it
}

var refusalClasses = [...]RefusalClass{
	RefusedKey, RefusedValue, RefusedName, RefusedIdentity, RefusedPrefix, RefusedNumber, RefusedWireGuard, RefusedBudget,
}

var _ kvstore.Sink = (*Reader)(nil)

// NewReader makes a Reader; it panics if the configuration names no cluster or
// has no Out, which no input can cause.
func NewReader(cfg ReaderConfig) *Reader {
	if cfg.Admission.Cluster == "" || cfg.Out == nil {
		panic("clustermesh.NewReader: Admission.Cluster and Out must be set")
	}
	if cfg.Scope == "" {
		cfg.Scope = ScopeExport
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Reader{cfg: cfg, prefix: ScopePrefix(cfg.Scope, cfg.Admission.Cluster), decoder: newDecoder(true)}
}

// Prefix is what to follow.
func (r *Reader) Prefix() string { return r.prefix }

// Marker is the key whose presence says that a list is a whole publication: the
// cluster record, of scope export also for scope local.
func (r *Reader) Marker() string {
	if r.cfg.Scope == ScopeMirror {
		return ClusterKey(ScopeMirror, r.cfg.Admission.Cluster)
	}
	return ClusterKey(ScopeExport, r.cfg.Admission.Cluster)
}

// Complete says whether marker stands for a whole publication of the cluster
// that was admitted. It fits FollowConfig.Complete and is safe for concurrent use.
func (r *Reader) Complete(marker []byte) error {
	_, err := r.parseMarker(marker)
	return err
}

func (r *Reader) parseMarker(marker []byte) (*Cluster, error) {
	if marker == nil {
		return nil, fmt.Errorf("cluster %s has published nothing complete yet: no record %s", r.cfg.Admission.Cluster, r.Marker())
	}
	rec, err := Decode(Key{Scope: ScopeExport, Cluster: r.cfg.Admission.Cluster, Kind: KindCluster}, marker)
	if err != nil {
		return nil, err
	}
	c := rec.(*Cluster)
	if err := r.cfg.Admission.checkCluster(c); err != nil {
		return nil, fmt.Errorf("record %s: %w", r.Marker(), err)
	}
	return c, nil
}

// Begin implements kvstore.Sink. It refuses a store whose marker is not the
// admitted cluster's.
func (r *Reader) Begin(_ kvstore.Position, marker []byte) error {
	c, err := r.parseMarker(marker)
	if err != nil {
		return err
	}
	if r.incarnation != 0 && c.Incarnation != r.incarnation {
		r.cfg.Log.Info("cluster has a new incarnation; keeping what is known until its list is complete",
			"cluster", r.cfg.Admission.Cluster, "scope", r.cfg.Scope, "incarnation", c.Incarnation)
	}
	r.decoder = newDecoder(true)
	r.fresh = NewView(r.cfg.Admission, r.cfg.Scope)
	r.fresh.self, r.fresh.keys, r.fresh.bytes = c, 1, footprint(c)
	r.refused = nil
	return nil
}

// Apply implements kvstore.Sink. An error asks for a new list: the cluster's
// marker was deleted or changed its incarnation, so that what follows is no
// ordinary change. Nothing of such a batch is handed over.
func (r *Reader) Apply(at kvstore.Position, events []kvstore.Event) error {
	if r.fresh != nil {
		for i := range events {
			r.list(&events[i])
		}
		return nil
	}
	if err := r.checkMarkerEvents(events); err != nil {
		return err
	}
	changes := make([]Change, 0, len(events))
	for i := range events {
		if c, ok := r.change(&events[i]); ok {
			changes = append(changes, c)
		}
	}
	r.send(Update{Position: at, Changes: changes})
	return nil
}

// checkMarkerEvents looks for the end of the incarnation before anything of a
// batch is believed: deleting a whole prefix is one revision.
func (r *Reader) checkMarkerEvents(events []kvstore.Event) error {
	marker := r.Marker()
	for i := range events {
		e := &events[i]
		if e.KV.Key != marker {
			continue
		}
		if e.Delete {
			return fmt.Errorf("cluster %s deleted its own record %s: keeping what is known until a complete list is there", r.cfg.Admission.Cluster, marker)
		}
		c, err := r.parseMarker(e.KV.Value)
		if err == nil && c.Incarnation != r.incarnation {
			return fmt.Errorf("cluster %s has a new incarnation: keeping what is known until its list is complete", r.cfg.Admission.Cluster)
		}
	}
	return nil
}

// list adds one record to the fresh view.
func (r *Reader) list(e *kvstore.Event) {
	if r.skips(e) {
		return
	}
	k, rec, err := r.read(e)
	if err == nil && rec != nil {
		err = r.fresh.put(rec)
	}
	if err == nil {
		return
	}
	class := r.refuse(e.KV.Key, err)
	if k.Kind != "" && len(r.fresh.refused) < maxCarried {
		k.Name = strings.Clone(k.Name)
		r.fresh.refused = append(r.fresh.refused, refusedKey{key: k, class: class})
	}
}

// change is one admitted change of the watch.
func (r *Reader) change(e *kvstore.Event) (Change, bool) {
	if r.skips(e) {
		return Change{}, false
	}
	k, rec, err := r.read(e)
	if err != nil {
		r.refuse(e.KV.Key, err)
		return Change{}, false
	}
	k.Name = strings.Clone(k.Name)
	if rec == nil {
		return Change{Key: k}, true
	}
	if a, ok := rec.(*Address); ok {
		return Change{Key: k, Record: a.clone(r.decoder.in)}, true
	}
	return Change{Key: k, Record: owned(rec)}, true
}

// skips: an event of a kind that is not kept.
func (r *Reader) skips(e *kvstore.Event) bool {
	if r.cfg.Kinds == nil {
		return false
	}
	rest, ok := strings.CutPrefix(e.KV.Key, r.prefix)
	kind, _, _ := strings.Cut(rest, "/")
	return ok && kind != string(KindCluster) && !slices.Contains(r.cfg.Kinds, Kind(kind))
}

// read parses, decodes and admits one event. The key's name and a borrowed
// record alias the event. A delete has a nil Record.
func (r *Reader) read(e *kvstore.Event) (Key, Record, error) {
	rest, ok := strings.CutPrefix(e.KV.Key, r.prefix)
	if !ok {
		return Key{}, nil, refuse(RefusedKey, "not below %s", r.prefix)
	}
	kind, name, slash := strings.Cut(rest, "/")
	k := Key{Scope: r.cfg.Scope, Cluster: r.cfg.Admission.Cluster, Kind: knownKind(kind), Name: name}
	if slash && name == "" || len(e.KV.Key) > maxKey {
		return Key{}, nil, refuse(RefusedKey, "no key of this layout")
	}
	if k.Kind == "" {
		return Key{}, nil, refuse(RefusedKey, "unknown kind %s: the publisher is newer, or wrong", quote(kind))
	}
	if err := r.cfg.Admission.checkKey(k); err != nil {
		return Key{}, nil, err
	}
	if e.Delete {
		if err := validateName(k.Kind, name); err != nil {
			return Key{}, nil, &RefusedError{Class: RefusedKey, Reason: err.Error()}
		}
		return k, nil, nil
	}
	rec, err := r.decoder.decode(k.Kind, name, e.KV.Value)
	if err != nil {
		return k, nil, &RefusedError{Class: RefusedValue, Reason: err.Error()}
	}
	return k, rec, r.cfg.Admission.checkRecord(rec)
}

// knownKind is the constant equal to s, so that no key keeps a list's memory.
func knownKind(s string) Kind {
	for _, k := range Kinds {
		if string(k) == s {
			return k
		}
	}
	return ""
}

// Synced implements kvstore.Sink: the fresh view passes to the owner.
func (r *Reader) Synced(at kvstore.Position) {
	v := r.fresh
	if v == nil {
		return
	}
	r.fresh = nil
	v.finish()
	r.incarnation = v.self.Incarnation
	r.decoder = newDecoder(true)
	r.decoder.in.slab.seal()
	r.send(Update{Position: at, View: v})
}

// Lost implements kvstore.Sink.
func (r *Reader) Lost(err error) {
	if err == nil {
		err = errors.New("connection lost")
	}
	r.fresh = nil // a broken list changes nothing
	r.send(Update{Lost: err})
}

func (r *Reader) send(u Update) {
	u.Cluster, u.Scope, u.Incarnation = r.cfg.Admission.Cluster, r.cfg.Scope, r.incarnation
	u.Refused, u.RefusedTotal, u.RefusedByClass = r.refused, r.refusedTotal, r.refusedByClass
	r.refused, r.refusedTotal, r.refusedByClass = nil, 0, nil
	r.cfg.Out(u)
}

// refuse notes a record that is not believed.
func (r *Reader) refuse(key string, err error) RefusalClass {
	class := RefusedValue
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		class = refused.Class
	}
	for i, c := range refusalClasses {
		if c == class {
			r.counts[i].Add(1)
		}
	}
	r.refusedTotal++
	if r.refusedByClass == nil {
		r.refusedByClass = map[RefusalClass]uint64{}
	}
	r.refusedByClass[class]++
	if len(r.refused) < maxRefusals {
		refusal := Refusal{Key: quote(key), Class: class, Reason: err.Error()}
		r.refused = append(r.refused, refusal)
		r.say(refusal)
	}
	return class
}

// A peer may send refused records as fast as it likes: of these, at most
// refusalsSaid in refusalsEvery are logged one by one.
const (
	refusalsSaid  = 10
	refusalsEvery = 30 * time.Second
)

// say logs a refusal, unless many were logged a moment ago.
func (r *Reader) say(refusal Refusal) {
	if now := time.Now(); now.Sub(r.sayingSince) >= refusalsEvery {
		if r.unsaid > 0 {
			r.cfg.Log.Warn("more records were refused", "cluster", r.cfg.Admission.Cluster, "scope", r.cfg.Scope, "times", r.unsaid)
		}
		r.sayingSince, r.said, r.unsaid = now, 0, 0
	}
	level := slog.LevelWarn
	if r.said++; r.said > refusalsSaid {
		r.unsaid++
		level = slog.LevelDebug
	}
	r.cfg.Log.Log(context.Background(), level, "record refused; the last good one stays", "cluster", r.cfg.Admission.Cluster,
		"key", refusal.Key, "class", refusal.Class, "reason", refusal.Reason)
}

// RefusedCounts are the records refused so far, by class. Safe for concurrent use.
func (r *Reader) RefusedCounts() map[RefusalClass]uint64 {
	counts := make(map[RefusalClass]uint64, len(refusalClasses))
	for i, c := range refusalClasses {
		counts[c] = r.counts[i].Load()
	}
	return counts
}
