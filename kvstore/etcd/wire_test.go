package etcd

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

var kvGen = rapid.Custom(func(t *rapid.T) kvstore.KV {
	rev := rapid.Int64Range(1, 1<<40)
	return kvstore.KV{
		Key:            rapid.StringN(1, 50, 300).Draw(t, "key"),
		Value:          rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value"),
		CreateRevision: rev.Draw(t, "create"),
		ModRevision:    rev.Draw(t, "mod"),
		Lease:          rapid.Int64().Draw(t, "lease"),
	}
})

func proto3(kv kvstore.KV, keysOnly bool) *mvccpb.KeyValue {
	out := &mvccpb.KeyValue{Key: []byte(kv.Key), Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Lease: kv.Lease, Version: 2}
	if kv.CreateRevision == kv.ModRevision {
		out.Version = 1
	}
	if keysOnly {
		out.Value = nil
	}
	return out
}

func TestWireIsProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pos := kvstore.Position{StoreID: rapid.Uint64Min(1).Draw(t, "id"), Revision: rapid.Int64Range(1, 1<<50).Draw(t, "rev")}
		kvs := rapid.SliceOfN(kvGen, 0, 5).Draw(t, "kvs")
		keysOnly := rapid.Bool().Draw(t, "keysOnly")
		res := result{header: pos, count: rapid.Int64Range(0, 1<<40).Draw(t, "count"), more: rapid.Bool().Draw(t, "more")}

		var body []byte
		want := &pb.RangeResponse{Header: header(pos), More: res.more, Count: res.count}
		for i := range kvs {
			body = appendRangeKV(body, &kvs[i], keysOnly)
			want.Kvs = append(want.Kvs, proto3(kvs[i], keysOnly))
		}
		same(t, res.append(body), new(pb.RangeResponse), want)

		w := &serverWatch{id: rapid.Int64Range(0, 1<<40).Draw(t, "watch"), req: &pb.WatchCreateRequest{Fragment: rapid.Bool().Draw(t, "fragment")}}
		var events []kvstore.Event
		answer := &pb.WatchResponse{Header: header(pos), WatchId: w.id}
		for _, kv := range kvs {
			ev := kvstore.Event{Delete: rapid.Bool().Draw(t, "delete"), KV: kv}
			msg := &mvccpb.Event{Kv: proto3(kv, false)}
			if ev.Delete {
				msg = &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(kv.Key), ModRevision: kv.ModRevision}}
			}
			events = append(events, ev)
			answer.Events = append(answer.Events, msg)
		}
		got, rest := w.encode(pos, events)
		if len(rest) != 0 {
			t.Fatalf("%d events left", len(rest))
		}
		same(t, got, new(pb.WatchResponse), answer)
	})
}

type failer interface{ Fatalf(string, ...any) }

func same(t failer, got []byte, into, want proto.Message) {
	if err := proto.Unmarshal(got, into); err != nil {
		t.Fatalf("%v", err)
	}
	if !proto.Equal(into, want) {
		t.Fatalf("decoded\n%v\nwant\n%v", into, want)
	}
}

func TestFragmentsOfWatch(t *testing.T) {
	w := &serverWatch{id: 3, req: &pb.WatchCreateRequest{Fragment: true}}
	var events []kvstore.Event
	for range 100 {
		events = append(events, kvstore.Event{KV: kvstore.KV{Key: "/a", Value: make([]byte, 50<<10), CreateRevision: 5, ModRevision: 5}})
	}
	n, messages := 0, 0
	for rest := events; len(rest) > 0; messages++ {
		var body []byte
		body, rest = w.encode(kvstore.Position{StoreID: 1, Revision: 5}, rest)
		r := new(pb.WatchResponse)
		if err := proto.Unmarshal(body, r); err != nil {
			t.Fatal(err)
		}
		if r.Fragment != (len(rest) > 0) || len(body) > fragmentBytes+100<<10 {
			t.Fatalf("message %d of %d bytes: fragment %v", messages, len(body), r.Fragment)
		}
		n += len(r.Events)
	}
	if n != 100 || messages < 5 {
		t.Fatalf("%d events in %d messages", n, messages)
	}
	w.req.Fragment = false
	if _, rest := w.encode(kvstore.Position{StoreID: 1, Revision: 5}, events); len(rest) != 0 {
		t.Fatal("fragments were sent to a watch that did not ask for them")
	}
}
