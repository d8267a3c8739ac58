package apiserver

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
)

// sourceGuard stands between the source and the deriver: when more than half of
// many objects of a kind are gone at once (a folder that was unmounted or
// deleted looks so), those objects stay in force until the source has lacked
// them for a while, or somebody confirms. It judges objects, not records: a
// service whose pods are all gone is one record that says less.
//
// It belongs to the core's goroutine.
type sourceGuard struct {
	delay time.Duration
	kinds map[string]*guardedKind
}

const (
	guardCount = 10
	// guardBurst is how far apart the deletes of one act may be: a folder is
	// emptied file by file. What went first comes back when the rest is held.
	guardBurst = 2 * time.Second
)

type guardedKind struct {
	objects map[Ref]runtime.Object // in force, held ones too
	held    map[Ref]time.Time      // the source lacks them since then
	gone    map[Ref]goneObject     // let go within the last delay
	high    int                    // most objects at a time since the oldest of gone
}

type goneObject struct {
	object runtime.Object
	at     time.Time
}

func newSourceGuard(delay time.Duration) *sourceGuard {
	return &sourceGuard{delay: delay, kinds: make(map[string]*guardedKind)}
}

func (g *sourceGuard) kind(name string) *guardedKind {
	k := g.kinds[name]
	if k == nil {
		k = &guardedKind{objects: make(map[Ref]runtime.Object), held: make(map[Ref]time.Time), gone: make(map[Ref]goneObject)}
		g.kinds[name] = k
	}
	return k
}

// admit makes of a delivery the changes that may take effect now.
func (g *sourceGuard) admit(o Objects, now time.Time) Objects {
	out := Objects{Upserts: maps.Clone(o.Upserts), Problems: o.Problems, At: o.At}
	if out.Upserts == nil {
		out.Upserts = make(map[Ref]runtime.Object)
	}
	lacking := make(map[string][]Ref)
	for _, ref := range o.Deletes {
		if o.DeletesNamed {
			g.kind(ref.Kind).named(ref)
			out.Deletes = append(out.Deletes, ref)
			continue
		}
		lacking[ref.Kind] = append(lacking[ref.Kind], ref)
	}
	for name, k := range g.kinds {
		for ref := range k.objects {
			if _, there := o.Upserts[ref]; o.Complete && !there {
				lacking[name] = append(lacking[name], ref)
			}
		}
	}
	for ref, obj := range o.Upserts {
		k := g.kind(ref.Kind)
		k.objects[ref] = obj
		delete(k.held, ref)
		delete(k.gone, ref)
	}
	for _, k := range g.kinds {
		k.forget(now.Add(-g.delay))
		k.high = max(k.high, len(k.objects))
	}
	for name, refs := range lacking {
		g.kind(name).lack(refs, now, &out)
	}
	return out
}

// named takes a delete that somebody spoke out: it is no sign of a source that
// has lost what it had.
func (k *guardedKind) named(ref Ref) {
	delete(k.objects, ref)
	delete(k.held, ref)
	if k.high > 0 {
		k.high--
	}
}

// forget lets go of what was deleted before then.
func (k *guardedKind) forget(before time.Time) {
	maps.DeleteFunc(k.gone, func(_ Ref, o goneObject) bool { return o.at.Before(before) })
	if len(k.gone) == 0 {
		k.high = len(k.objects)
	}
}

// lack decides on objects that the source no longer has.
func (k *guardedKind) lack(refs []Ref, now time.Time, out *Objects) {
	fresh := slices.DeleteFunc(refs, func(ref Ref) bool {
		_, held := k.held[ref]
		_, there := k.objects[ref]
		return held || !there
	})
	lost := k.high - (len(k.objects) - len(k.held) - len(fresh))
	if lost <= guardCount || 2*lost <= k.high {
		for _, ref := range fresh {
			k.gone[ref] = goneObject{k.objects[ref], now}
			delete(k.objects, ref)
			out.Deletes = append(out.Deletes, ref)
		}
		return
	}
	for _, ref := range fresh {
		k.held[ref] = now
	}
	for ref, o := range k.gone {
		if now.Sub(o.at) <= guardBurst {
			k.objects[ref], k.held[ref], out.Upserts[ref] = o.object, now, o.object
			delete(k.gone, ref)
		}
	}
}

// release returns the deletes that are held of a kind ("" = all) and were so
// before then; they take effect now.
func (g *sourceGuard) release(kind string, before time.Time) (refs []Ref) {
	for name, k := range g.kinds {
		if kind != "" && !strings.EqualFold(kind, name) {
			continue
		}
		n := len(refs)
		for ref, since := range k.held {
			if !since.After(before) {
				refs = append(refs, ref)
				delete(k.held, ref)
				delete(k.objects, ref)
			}
		}
		if len(refs) > n {
			clear(k.gone)
			k.high = len(k.objects)
		}
	}
	slices.SortFunc(refs, compareRefs)
	return refs
}

// problems names what is held.
func (g *sourceGuard) problems() []Problem {
	var ps []Problem
	for _, name := range slices.Sorted(maps.Keys(g.kinds)) {
		k := g.kinds[name]
		if len(k.held) == 0 {
			continue
		}
		kind := strings.ToLower(name)
		ps = append(ps, Problem{
			Object: "objects of kind " + kind,
			What:   "a mass delete is held",
			Why:    fmt.Sprintf("the source lacks %d of %d objects it had (%s …)", len(k.held), len(k.objects), printable(slices.MinFunc(slices.Collect(maps.Keys(k.held)), compareRefs).String())),
			Fix:    "if it is meant: tombolo mesh confirm-deletes " + kind + "; it goes ahead by itself when a second list agrees",
		})
	}
	return ps
}
