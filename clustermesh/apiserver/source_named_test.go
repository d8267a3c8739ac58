package apiserver

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Deletes that were spoken out by name are believed, however many they are; what is
// merely not there any more is held back; and the former leave the guard what it
// needs to judge the latter.
func TestDeletesNamed(t *testing.T) {
	podRef := func(i int) Ref { return Ref{KindPod, "shop", fmt.Sprintf("p%02d", i)} }
	refs := func(from, to int) (out []Ref) {
		for i := from; i < to; i++ {
			out = append(out, podRef(i))
		}
		return out
	}
	all := map[Ref]runtime.Object{}
	for i := range 40 {
		all[podRef(i)] = &corev1.Pod{}
	}
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		name  string
		steps []Objects
		want  []int // deletes let through, by step
	}{
		{"all, by name", []Objects{{Deletes: refs(0, 40), DeletesNamed: true}}, []int{40}},
		{"all, not there", []Objects{{Deletes: refs(0, 40)}}, []int{0}},
		{"all, by a complete list", []Objects{{Complete: true}}, []int{0}},
		{"few, not there", []Objects{{Deletes: refs(0, 10)}}, []int{10}},
		// Of the 12 that are left, 10 that are not there any more are not too many,
		// which they would be if the guard still counted those named.
		{"many by name, then few", []Objects{{Deletes: refs(0, 28), DeletesNamed: true}, {Deletes: refs(28, 38)}}, []int{28, 10}},
		{"many by name, then many", []Objects{{Deletes: refs(0, 10), DeletesNamed: true}, {Deletes: refs(10, 40)}}, []int{10, 0}},
		{"held ones, by name", []Objects{{Deletes: refs(0, 40)}, {Deletes: refs(0, 40), DeletesNamed: true}}, []int{0, 40}},
		{"what is not there, by name", []Objects{{Deletes: refs(90, 95), DeletesNamed: true}}, []int{5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newSourceGuard(30 * time.Second)
			g.admit(Objects{Complete: true, Upserts: all}, now)
			for i, o := range c.steps {
				if got := len(g.admit(o, now.Add(time.Duration(i+1)*time.Second)).Deletes); got != c.want[i] {
					t.Errorf("step %d: %d deletes were let through, want %d", i, got, c.want[i])
				}
			}
		})
	}
}
