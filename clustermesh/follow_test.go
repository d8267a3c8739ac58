package clustermesh

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// TestReaderFollows puts a Reader behind kvstore.Follow: nothing before the
// cluster record is there, everything with it, changes after, and a wiped store
// changes nothing.
func TestReaderFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		defer store.Close()
		r := newReading(t, gcp, ScopeExport)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- kvstore.Follow(ctx, kvstore.FollowConfig{
				Stores: []kvstore.Store{store}, Prefix: r.Prefix(), Marker: r.Marker(), Complete: r.Complete, Sink: r,
			})
		}()
		put := func(records ...Record) {
			var ops []kvstore.Op
			for _, rec := range records {
				e := r.event(rec)
				ops = append(ops, kvstore.Put(e.KV.Key, e.KV.Value, 0))
			}
			if _, err := store.Commit(ctx, ops...); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute) // virtual: longer than any back-off
			synctest.Wait()
		}
		put(service("a"))
		if r.view != nil {
			t.Error("a view before the cluster record")
		}
		put(gcpFirst)
		if r.view == nil || r.view.Len() != 2 {
			t.Fatal("no view of a whole publication")
		}
		put(service("b"))
		if r.view.Service(ServiceName{"shop", "b"}) == nil {
			t.Error("a change did not arrive")
		}
		wipe := []kvstore.Op{kvstore.Delete(r.Marker())}
		for _, name := range []string{"a", "b"} {
			wipe = append(wipe, kvstore.Delete(KeyOf(ScopeExport, "gcp", service(name)).String()))
		}
		if _, err := store.Commit(ctx, wipe...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if r.view.Len() != 3 {
			t.Errorf("a wiped store left %d records", r.view.Len())
		}
		put(service("b"), &Cluster{Name: "gcp", ID: 2, Incarnation: 2})
		if r.view.Len() != 2 || r.view.Service(ServiceName{"shop", "a"}) != nil || r.view.Cluster().Incarnation != 2 {
			t.Errorf("after a new incarnation the view holds\n%s", r.view.Dump())
		}
		cancel()
		<-ended
	})
}
