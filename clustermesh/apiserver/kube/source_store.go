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
	"k8s.io/apimachinery/pkg/types"
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
	uid    types.UID
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

// received is an object as the API server told it, taken apart.
type received struct {
	ref     apiserver.Ref
	uid     types.UID
	rev     uint64         // 0: not comparable, and never older
	kept    runtime.Object // what is read here of it; nil = it cannot be read
	problem *apiserver.Problem
}

func (k *kindState) read(obj any) (received, error) {
	o, ok := obj.(runtime.Object)
	if !ok {
		return received{}, fmt.Errorf("%T is no object", obj)
	}
	m, err := meta.Accessor(o)
	if err != nil {
		return received{}, err
	}
	r := received{ref: apiserver.Ref{Kind: k.name, Namespace: m.GetNamespace(), Name: m.GetName()}, uid: m.GetUID()}
	r.rev, _ = strconv.ParseUint(m.GetResourceVersion(), 10, 64)
	if k.raw {
		r.kept, r.problem = readRaw(r.ref, o)
		return r, nil
	}
	r.kept = k.trim(o)
	if m, err = meta.Accessor(r.kept); err == nil {
		m.SetResourceVersion("")
	}
	return r, err
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
	r, err := k.read(obj)
	if err != nil {
		return err
	}
	s := k.source
	s.mu.Lock()
	defer s.mu.Unlock()
	k.answered(r.rev)
	if old, had := k.held[r.ref]; had && r.rev != 0 && r.rev < old.rev {
		return nil // it comes late
	}
	k.put(r)
	s.stir()
	return nil
}

// put takes an object; the caller holds the lock. One of another UID is another
// object, also if nobody told that the former was deleted: a list between two
// watches does not.
func (k *kindState) put(r received) {
	s := k.source
	old, had := k.held[r.ref]
	renewed := had && old.uid != r.uid
	if renewed && r.kept == nil {
		delete(k.held, r.ref)
		s.remove(r.ref, true)
		had = false
	}
	if r.problem != nil {
		s.warnings[r.ref] = *r.problem
	} else {
		delete(s.warnings, r.ref)
	}
	if r.kept == nil { // it cannot be read: what it said before stays
		if had {
			k.held[r.ref] = heldObject{old.object, r.rev, r.uid}
		}
		return
	}
	if had && !renewed && equality.Semantic.DeepEqual(old.object, r.kept) {
		k.held[r.ref] = heldObject{old.object, r.rev, r.uid}
		return
	}
	k.held[r.ref] = heldObject{r.kept, r.rev, r.uid}
	s.upsert(r.ref, r.kept, renewed)
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
		r, err := k.read(obj)
		if err != nil {
			return err
		}
		present[r.ref] = true
		k.put(r)
	}
	for _, ref := range sortedRefs(k.held) {
		if !present[ref] {
			delete(k.held, ref)
			s.remove(ref, false)
		}
	}
	for ref := range s.warnings { // of what could never be read, too
		if ref.Kind == k.name && !present[ref] {
			delete(s.warnings, ref)
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
