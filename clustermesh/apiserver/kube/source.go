package kube

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// SourceConfig makes a Source.
type SourceConfig struct {
	Client *Client
	// ServiceExports are followed, too.
	ServiceExports bool
	Log            *slog.Logger // nil = discard
	// Restored is how long a state that is older than the one before must be what
	// the API server says before it is believed: an API server that is behind
	// another one catches up, an etcd that was restored from a copy does not.
	// Default 30 s.
	Restored time.Duration
	// Forbidden is how long the first delivery waits for a kind that a feature may be
	// without and that this server may not see: an upgrade may be about to allow it.
	// Default 10 s.
	Forbidden time.Duration
}

// Source is an apiserver.Source: the objects of a kube-apiserver, by list and
// watch. Each kind has a reflector of client-go, which lists, watches, goes on
// where a watch ended, and lists again where it cannot. What it says is trimmed
// to what is read here, kept once (what is delivered is what is kept), and
// compared, so that a change nobody reads is none.
//
// An API server that is away, or a list that fails, changes nothing.
type Source struct {
	cfg SourceConfig
	log *slog.Logger

	wake chan struct{} // buffered by one: there is something to deliver

	mu       sync.Mutex
	kinds    []*kindState
	upserts  map[apiserver.Ref]runtime.Object
	deletes  map[apiserver.Ref]bool // true = a watch named it
	renewed  map[apiserver.Ref]bool // of upserts: another object had the name before
	at       time.Time              // of the first of them
	warnings map[apiserver.Ref]apiserver.Problem
}

// NewSource makes a Source; nothing is dialled before Run.
func NewSource(cfg SourceConfig) *Source {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Restored == 0 {
		cfg.Restored = 30 * time.Second
	}
	if cfg.Forbidden == 0 {
		cfg.Forbidden = 10 * time.Second
	}
	s := &Source{
		cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1),
		warnings: make(map[apiserver.Ref]apiserver.Problem),
	}
	s.reset()
	for _, k := range sourceKinds {
		if k.name != apiserver.KindServiceExport || cfg.ServiceExports {
			s.kinds = append(s.kinds, &kindState{sourceKind: k, source: s, held: make(map[apiserver.Ref]heldObject)})
		}
	}
	return s
}

// Run implements apiserver.Source.
func (s *Source) Run(ctx context.Context, deliver func(apiserver.Objects)) error {
	// What client-go would log about retries is in the problems.
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(s.log.With("part", "informer").Handler()))
	var followers sync.WaitGroup
	defer followers.Wait()
	for _, k := range s.kinds {
		followers.Go(func() { k.run(ctx) })
	}
	var before []apiserver.Problem
	complete := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		for _, o := range s.take(&complete) {
			if len(o.Upserts)+len(o.Deletes) > 0 || o.Complete || !slices.Equal(before, o.Problems) {
				before = o.Problems
				deliver(o)
			}
		}
	}
}

func (s *Source) stir() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take makes deliveries of what has come in. Before all kinds are known there
// are only problems to tell. Objects that a watch said were deleted, and those
// that a list lacks, are told apart: the guard against mass deletes believes the
// former.
func (s *Source) take(complete *bool) []apiserver.Objects {
	s.mu.Lock()
	defer s.mu.Unlock()
	problems := s.problems()
	if !*complete {
		all, ok := s.everything()
		if !ok {
			return []apiserver.Objects{{Problems: problems, At: time.Now()}}
		}
		*complete = true
		s.reset()
		return []apiserver.Objects{{Complete: true, Upserts: all, Problems: problems, At: time.Now()}}
	}
	named := apiserver.Objects{Upserts: s.upserts, DeletesNamed: true, Problems: problems, At: s.at}
	lacking := apiserver.Objects{Problems: problems, At: s.at}
	named.Deletes = sortedRefs(s.renewed)
	for ref, told := range s.deletes {
		if told {
			named.Deletes = append(named.Deletes, ref)
		} else {
			lacking.Deletes = append(lacking.Deletes, ref)
		}
	}
	s.reset()
	if len(lacking.Deletes) == 0 {
		return []apiserver.Objects{named}
	}
	return []apiserver.Objects{named, lacking}
}

func (s *Source) reset() {
	s.upserts, s.at = make(map[apiserver.Ref]runtime.Object), time.Time{}
	s.deletes, s.renewed = make(map[apiserver.Ref]bool), make(map[apiserver.Ref]bool)
}

// everything is all that is held; false if a kind is not known yet.
func (s *Source) everything() (map[apiserver.Ref]runtime.Object, bool) {
	all := make(map[apiserver.Ref]runtime.Object)
	for _, k := range s.kinds {
		if !k.synced && !k.doneWithout() {
			return nil, false
		}
		for ref, h := range k.held {
			all[ref] = h.object
		}
	}
	return all, true
}

// upsert and remove note a change; the caller holds the lock. renewed: the object
// is another one than before, of the same name.
func (s *Source) upsert(ref apiserver.Ref, obj runtime.Object, renewed bool) {
	s.noticed()
	if renewed || s.deletes[ref] {
		s.renewed[ref] = true
	}
	delete(s.deletes, ref)
	s.upserts[ref] = obj
}

func (s *Source) remove(ref apiserver.Ref, named bool) {
	s.noticed()
	delete(s.upserts, ref)
	delete(s.renewed, ref)
	delete(s.warnings, ref)
	s.deletes[ref] = named
}

// noticed notes when the first of the changes came in. The annotation
// endpoints.kubernetes.io/last-change-trigger-time of EndpointSlices would be
// an earlier moment, but it has whole seconds and tells of Kubernetes' own way.
func (s *Source) noticed() {
	if s.at.IsZero() {
		s.at = time.Now()
	}
}

var errBehind = errors.New("the API server answers with an older state than it did before")

// sortedRefs are in the order of their text.
func sortedRefs[V any](m map[apiserver.Ref]V) []apiserver.Ref {
	return slices.SortedFunc(maps.Keys(m), func(a, b apiserver.Ref) int { return compareText(a.String(), b.String()) })
}
