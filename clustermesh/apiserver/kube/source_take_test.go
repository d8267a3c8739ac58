package kube

import (
	"testing"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"k8s.io/client-go/rest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Events that come in before the ones before were delivered lose no deletion, and
// make none.
func TestEventsThatComeTogether(t *testing.T) {
	client, err := New(&rest.Config{Host: "http://127.0.0.1:1"}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	svc := func(uid, address string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: types.UID(uid)}, Spec: corev1.ServiceSpec{ClusterIP: address}}
	}
	ref := apiserver.Ref{Kind: apiserver.KindService, Namespace: "shop", Name: "web"}
	type events func(k *kindState) error
	put := func(uid, address string) events {
		return func(k *kindState) error { return k.Update(svc(uid, address)) }
	}
	gone := func(k *kindState) error { return k.Delete(svc("1", "a")) }
	list := func(uid string) events {
		return func(k *kindState) error { return k.Replace([]any{svc(uid, "a")}, "") }
	}
	empty := func(k *kindState) error { return k.Replace(nil, "") }
	for name, c := range map[string]struct {
		events          []events
		deleted, upsert bool
	}{
		"changed":                 {[]events{put("1", "b")}, false, true},
		"not changed":             {[]events{put("1", "a")}, false, false},
		"deleted":                 {[]events{gone}, true, false},
		"deleted and made anew":   {[]events{gone, put("2", "a")}, true, true},
		"made anew and changed":   {[]events{gone, put("2", "a"), put("2", "b")}, true, true},
		"made anew and deleted":   {[]events{gone, put("2", "a"), gone}, true, false},
		"another, without a word": {[]events{put("2", "a")}, true, true},
		"another, by a list":      {[]events{list("2")}, true, true},
		"the same, by a list":     {[]events{list("1")}, false, false},
		"lacking in a list, back": {[]events{empty, list("1")}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewSource(SourceConfig{Client: client})
			var k *kindState
			for _, other := range s.kinds {
				if other.synced = true; other.name == apiserver.KindService {
					k = other
				}
			}
			if err := put("1", "a")(k); err != nil {
				t.Fatal(err)
			}
			complete := false
			s.take(&complete)
			for _, f := range c.events {
				if err := f(k); err != nil {
					t.Fatal(err)
				}
			}
			deleted, upsert := false, false
			for _, o := range s.take(&complete) {
				for _, r := range o.Deletes {
					if deleted = true; r != ref || upsert {
						t.Errorf("deletes %v after the upsert or of another", o.Deletes)
					}
				}
				if _, there := o.Upserts[ref]; there {
					upsert = true
				}
			}
			if deleted != c.deleted || upsert != c.upsert {
				t.Errorf("deleted %v, upsert %v; want %v, %v", deleted, upsert, c.deleted, c.upsert)
			}
		})
	}
}
