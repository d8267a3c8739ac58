package kube

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// kindState is what is known of one kind. It is the store of a reflector, which
// calls it from its goroutine; all of it is under the source's lock.
type kindState struct {
	sourceKind
	source *Source

	held   map[apiserver.Ref]heldObject
	synced bool
	rev    uint64    // the newest resource version seen
	behind time.Time // since when lists are older than that; zero = they are not

	err    error // of the last request; nil = it was answered
	errAt  time.Time
	crdErr error // of watching its CustomResourceDefinition

	endWatch func() // of the reflector's goroutine
}

// heldObject is an object as delivered, and its resource version beside it: one
// that changed nothing that is read here is the same object.
type heldObject struct {
	object runtime.Object
	rev    uint64
}

var (
	_ cache.ReflectorStore         = (*kindState)(nil)
	_ cache.ReflectorBookmarkStore = (*kindState)(nil)
	_ cache.TransformingStore      = (*kindState)(nil)
)

// Transformer implements cache.TransformingStore: lists are trimmed as they
// stream in, so that at no time the whole of all objects is in memory.
func (k *kindState) Transformer() cache.TransformFunc {
	if k.trim == nil {
		return nil
	}
	return func(obj any) (any, error) {
		if o, ok := obj.(runtime.Object); ok {
			return k.trim(o), nil
		}
		return obj, nil
	}
}

// read takes an object apart: what is kept of it, where it belongs, its version.
// problem is nil unless something is wrong with it.
func (k *kindState) read(obj any) (ref apiserver.Ref, kept runtime.Object, rev uint64, problem *apiserver.Problem, err error) {
	o, ok := obj.(runtime.Object)
	if !ok {
		return ref, nil, 0, nil, fmt.Errorf("%T is no object", obj)
	}
	m, err := meta.Accessor(o)
	if err != nil {
		return ref, nil, 0, nil, err
	}
	ref = apiserver.Ref{Kind: k.name, Namespace: m.GetNamespace(), Name: m.GetName()}
	rev, _ = strconv.ParseUint(m.GetResourceVersion(), 10, 64) // 0: not comparable, and never older
	if k.raw {
		kept, problem = readRaw(ref, o)
		return ref, kept, rev, problem, nil
	}
	kept = k.trim(o)
	if m, err = meta.Accessor(kept); err == nil {
		m.SetResourceVersion("")
	}
	return ref, kept, rev, nil, err
}

// readRaw decodes a ClusterNetworkPolicy from its text, as the folder does: what
// is missing or not known must not look like something that was said.
func readRaw(ref apiserver.Ref, o runtime.Object) (runtime.Object, *apiserver.Problem) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return nil, nil
	}
	text, err := json.Marshal(map[string]any{ // without what changes by itself
		"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "metadata": map[string]any{"name": u.GetName()}, "spec": u.Object["spec"],
	})
	if err != nil {
		return nil, nil // it was JSON a moment ago
	}
	kept, unknown, err := apiserver.DecodeClusterNetworkPolicy(text)
	if err != nil {
		return nil, &apiserver.Problem{Object: ref.String(), What: "not read", Why: err.Error(), Fix: "correct it; until then what it said before stays in force"}
	}
	if unknown != "" {
		return kept, &apiserver.Problem{Object: ref.String(), What: "a field is not known and has no effect", Why: unknown, Fix: "check its spelling, or use a version of Tombolo that knows it"}
	}
	return kept, nil
}

// Add implements cache.ReflectorStore.
func (k *kindState) Add(obj any) error { return k.Update(obj) }

// Update implements cache.ReflectorStore.
func (k *kindState) Update(obj any) error {
	ref, kept, rev, problem, err := k.read(obj)
	if err != nil {
		return err
	}
	s := k.source
	s.mu.Lock()
	defer s.mu.Unlock()
	k.answered(rev)
	if old, had := k.held[ref]; had && rev != 0 && rev < old.rev {
		return nil // it comes late
	}
	k.put(ref, kept, rev, problem)
	s.stir()
	return nil
}

// put takes an object; the caller holds the lock.
func (k *kindState) put(ref apiserver.Ref, kept runtime.Object, rev uint64, problem *apiserver.Problem) {
	s := k.source
	if problem != nil {
		s.warnings[ref] = *problem
	} else {
		delete(s.warnings, ref)
	}
	old, had := k.held[ref]
	if kept == nil { // it cannot be read: what it said before stays
		if had {
			k.held[ref] = heldObject{old.object, rev}
		}
		return
	}
	if had && equality.Semantic.DeepEqual(old.object, kept) {
		k.held[ref] = heldObject{old.object, rev}
		return
	}
	k.held[ref] = heldObject{kept, rev}
	s.upsert(ref, kept)
}

// Delete implements cache.ReflectorStore: a watch said so.
func (k *kindState) Delete(obj any) error {
	o, ok := obj.(runtime.Object)
	if !ok {
		return fmt.Errorf("%T is no object", obj)
	}
	m, err := meta.Accessor(o)
	if err != nil {
		return err
	}
	ref := apiserver.Ref{Kind: k.name, Namespace: m.GetNamespace(), Name: m.GetName()}
	rev, _ := strconv.ParseUint(m.GetResourceVersion(), 10, 64)
	s := k.source
	s.mu.Lock()
	defer s.mu.Unlock()
	k.answered(rev)
	old, had := k.held[ref]
	if had && rev != 0 && rev < old.rev {
		return nil
	}
	delete(k.held, ref)
	if had {
		s.remove(ref, true)
	} else {
		delete(s.warnings, ref)
	}
	s.stir()
	return nil
}

// Replace implements cache.ReflectorStore: a complete list. One that is older
// than what is known is not believed until it has been so for a while.
func (k *kindState) Replace(list []any, version string) error {
	rev, _ := strconv.ParseUint(version, 10, 64)
	s := k.source
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.stir()
	if rev != 0 && rev < k.rev {
		now := time.Now()
		if k.behind.IsZero() {
			k.behind = now
		}
		if now.Sub(k.behind) < s.cfg.Restored {
			k.err, k.errAt = errBehind, now
			return fmt.Errorf("%w (%d after %d)", errBehind, rev, k.rev)
		}
		s.log.Warn("the API server's state is older than it was, and stays so: it is taken as restored from a copy", "kind", k.name, "revision", rev, "before", k.rev)
	}
	k.behind, k.err, k.rev = time.Time{}, nil, rev
	present := make(map[apiserver.Ref]bool, len(list))
	for _, obj := range list {
		ref, kept, rev, problem, err := k.read(obj)
		if err != nil {
			return err
		}
		present[ref] = true
		k.put(ref, kept, rev, problem)
	}
	for _, ref := range sortedRefs(k.held) {
		if !present[ref] {
			delete(k.held, ref)
			s.remove(ref, false)
		}
	}
	k.synced = true
	return nil
}

// Bookmark implements cache.ReflectorBookmarkStore.
func (k *kindState) Bookmark(version string) error {
	rev, _ := strconv.ParseUint(version, 10, 64)
	k.source.mu.Lock()
	defer k.source.mu.Unlock()
	k.answered(rev)
	return nil
}

// Resync implements cache.ReflectorStore: there is nothing to do again.
func (k *kindState) Resync() error { return nil }

// answered: the API server has told something as new as rev.
func (k *kindState) answered(rev uint64) {
	k.rev = max(k.rev, rev)
	k.behind = time.Time{}
	if k.err != nil {
		k.err = nil
		k.source.stir()
	}
}

// absent: the kind does not exist. Its objects are gone with it.
func (k *kindState) absent() {
	s := k.source
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.stir()
	for _, ref := range sortedRefs(k.held) {
		delete(k.held, ref)
		s.remove(ref, true)
	}
	k.synced, k.err, k.rev, k.behind = true, nil, 0, time.Time{}
}
