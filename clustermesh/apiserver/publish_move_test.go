package apiserver

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// A service that becomes global, and back, is at every revision in at least one
// scope, and stays in the one it leaves for a while.
func TestServiceMovesBetweenScopes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		defer store.Close()
		source := &staticSource{changes: make(chan Objects, 1)}
		ready := true
		port, name := int32(8080), "http"
		say := func(global string, complete bool) {
			source.changes <- Objects{Complete: complete, At: time.Now(), Upserts: map[Ref]runtime.Object{
				{KindNode, "", "n1"}: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.1.0/24"}}},
				{KindService, "default", "shop"}: &corev1.Service{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop", Annotations: map[string]string{"service.cilium.io/global": global}},
					Spec:       corev1.ServiceSpec{ClusterIP: "172.20.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
				},
				{KindEndpointSlice, "default", "shop-1"}: &discoveryv1.EndpointSlice{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop-1", Labels: map[string]string{discoveryv1.LabelServiceName: "shop"}}, AddressType: discoveryv1.AddressTypeIPv4,
					Ports:     []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
					Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.1.7"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
				},
			}}
		}
		began, start := store.Position(), time.Now()
		p := startPublishing(t, Config{Source: source}, store)
		defer p.stop()
		// present[key] is since when; a record is where its key is without the scope.
		present := map[string]time.Time{}
		records := map[string]int{}
		ctx, cancel := context.WithCancel(context.Background())
		watched := make(chan struct{})
		var overlap time.Duration
		go func() {
			defer close(watched)
			for batch, err := range store.Watch(ctx, clustermesh.Root, began) {
				if err != nil {
					t.Error(err)
					return
				}
				for _, e := range batch.Events {
					other := twin(e.KV.Key)
					if other == "" {
						continue
					}
					record := max(e.KV.Key, other)
					if _, had := present[e.KV.Key]; !had && !e.Delete {
						present[e.KV.Key] = time.Now()
						records[record]++
					}
					if e.Delete {
						delete(present, e.KV.Key)
						records[record]--
						overlap = time.Since(present[other])
						if records[record] == 0 {
							t.Errorf("%s is in neither scope at revision %d", record, e.KV.ModRevision)
						} else if overlap < moveTime {
							t.Errorf("%s went %v after its twin came, at %v", e.KV.Key, overlap, time.Since(start))
						}
					}
				}
			}
		}()
		for i, global := range []string{"true", "false", "true", "false"} {
			say(global, i == 0 || i == 3) // by single changes and by complete lists
			time.Sleep(5 * moveTime)
			synctest.Wait()
			in, not := "local/", "export/"
			if global == "true" {
				in, not = not, in
			}
			if text := dumpStore(store, in+"aws/"); !strings.Contains(text, "service/default/shop") || !strings.Contains(text, "10.1.1.7") {
				t.Errorf("global=%s: %s has\n%s\n%s", global, in, text, p.problemText())
			}
			if text := dumpStore(store, not+"aws/"); strings.Contains(text, "default/shop") {
				t.Errorf("global=%s: %s still has\n%s", global, not, text)
			}
		}
		// There and back within the time: nothing is lost.
		say("true", false)
		time.Sleep(moveTime / 2)
		say("false", false)
		time.Sleep(5 * moveTime)
		synctest.Wait()
		if text := dumpStore(store, "local/aws/"); !strings.Contains(text, "10.1.1.7") {
			t.Errorf("there and back:\n%s", text)
		}
		if overlap == 0 {
			t.Error("nothing ever moved")
		}
		// What is deleted within the time is in neither scope, and at once.
		cancel()
		<-watched
		say("true", false)
		time.Sleep(moveTime / 2)
		source.changes <- Objects{DeletesNamed: true, Deletes: []Ref{{KindService, "default", "shop"}}, At: time.Now()}
		time.Sleep(moveTime / 4)
		synctest.Wait()
		if text := dumpStore(store, ""); strings.Contains(text, "default/shop") {
			t.Errorf("deleted:\n%s", text)
		}
	})
}
