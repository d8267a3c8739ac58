package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// within lets every caller read /a/ alone.
func within(name string) (etcd.Access, error) {
	return etcd.Access{Name: name, Prefixes: []string{"/a/"}}, nil
}

func filled(t *testing.T) *kvstore.Memory {
	t.Helper()
	mem := kvstore.NewMemory(kvstore.MemoryOptions{})
	t.Cleanup(mem.Close)
	for i := range 10 {
		put(t, mem, fmt.Sprintf("/a/%d", i), fmt.Sprint("value ", i))
	}
	put(t, mem, "/b/secret", "secret")
	put(t, mem, "/a", "secret")
	put(t, mem, "/a0", "secret")
	return mem
}

// Every method of the etcd API, present and future, is refused unless it reads.
func TestEveryMethodIsDenied(t *testing.T) {
	p := serve(t, newCA(t), "", filled(t), func(name string) (etcd.Access, error) {
		if name != "reader" {
			return etcd.Access{}, errors.New("who are you?")
		}
		return within(name)
	})
	served := map[string]bool{"KV/Range": true, "KV/RangeStream": true, "Watch/Watch": true, "Maintenance/Status": true}
	good, stranger := p.open(t, "reader").Client().ActiveConnection(), p.open(t, "stranger").Client().ActiveConnection()
	n := 0
	for _, desc := range []grpc.ServiceDesc{pb.KV_ServiceDesc, pb.Watch_ServiceDesc, pb.Lease_ServiceDesc, pb.Cluster_ServiceDesc, pb.Maintenance_ServiceDesc, pb.Auth_ServiceDesc} {
		call := func(conn *grpc.ClientConn, method string, stream *grpc.StreamDesc) codes.Code {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			full := "/" + desc.ServiceName + "/" + method
			if stream == nil {
				return status.Code(conn.Invoke(ctx, full, &emptypb.Empty{}, &emptypb.Empty{}))
			}
			s, err := conn.NewStream(ctx, stream, full)
			if err != nil {
				return status.Code(err)
			}
			s.SendMsg(&emptypb.Empty{}) //nolint:errcheck // RecvMsg tells
			s.CloseSend()               //nolint:errcheck // RecvMsg tells
			return status.Code(s.RecvMsg(&emptypb.Empty{}))
		}
		check := func(method string, stream *grpc.StreamDesc) {
			n++
			name := strings.TrimPrefix(desc.ServiceName, "etcdserverpb.") + "/" + method
			if got := call(stranger, method, stream); got != codes.PermissionDenied {
				t.Errorf("%s by a stranger: %v", name, got)
			}
			if served[name] {
				return
			}
			if got := call(good, method, stream); got != codes.Unimplemented {
				t.Errorf("%s by a reader: %v", name, got)
			}
		}
		for _, m := range desc.Methods {
			check(m.MethodName, nil)
		}
		for i := range desc.Streams {
			check(desc.Streams[i].StreamName, &desc.Streams[i])
		}
	}
	if n < 40 {
		t.Fatalf("only %d methods were tried", n)
	}
	s := p.open(t, "reader")
	_, err := s.Commit(t.Context(), kvstore.Put("/a/x", nil, 0))
	wantErr(t, err, kvstore.ErrReadOnly)
	_, err = s.Grant(t.Context(), time.Second)
	wantErr(t, err, kvstore.ErrReadOnly)
}

// Reads outside of the caller's prefixes, however they are written.
func TestRangesDenied(t *testing.T) {
	p := serve(t, newCA(t), "", filled(t), within)
	s := p.open(t, "reader")
	kv, conn := pb.NewKVClient(s.Client().ActiveConnection()), pb.NewWatchClient(s.Client().ActiveConnection())
	for _, tc := range []struct {
		key, end string
		allowed  bool
	}{
		{"/a/", "/a0", true},
		{"/a/5", "", true},
		{"/a/", "", true},
		{"/a/nothing", "", true},
		{"/a/2", "/a/4", true},
		{"/a/5", "/a0", true},
		{"/a/5", "/a/5", true},  // empty
		{"/a/5", "/a/2", true},  // empty
		{"/b", "/a/2", false},   // empty, but not theirs
		{"/a/", "\x00", false},  // from key
		{"\x00", "\x00", false}, // everything
		{"\x00", "/a0", false},
		{"/a", "", false},
		{"/a", "/b", false},
		{"/a", "/a0", false},
		{"/a/", "/a0\x00", false},
		{"/a/", "/b", false},
		{"/a/", "\xff", false},
		{"/a0", "", false},
		{"/b/secret", "", false},
		{"/", "0", false},
		{"/a.", "/a0", false},
		{"/A/", "/A0", false},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		req := &pb.RangeRequest{Key: []byte(tc.key), RangeEnd: []byte(tc.end)}
		r, err := kv.Range(ctx, req)
		verdict(t, fmt.Sprintf("range %q %q", tc.key, tc.end), tc.allowed, err)
		for _, kv := range r.GetKvs() {
			if string(kv.Value) == "secret" {
				t.Errorf("range %q %q leaked %q", tc.key, tc.end, kv.Key)
			}
		}
		stream, err := kv.RangeStream(ctx, req)
		if err == nil {
			_, err = stream.Recv()
		}
		verdict(t, fmt.Sprintf("stream %q %q", tc.key, tc.end), tc.allowed, err)

		w, err := conn.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		create(t, w, &pb.WatchCreateRequest{Key: []byte(tc.key), RangeEnd: []byte(tc.end), StartRevision: 2})
		resp, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if empty := tc.end != "" && tc.end <= tc.key && tc.end != "\x00"; resp.Canceled == (tc.allowed && !empty) {
			t.Errorf("watch %q %q: %v", tc.key, tc.end, resp)
		}
		if !tc.allowed && !strings.Contains(resp.CancelReason, "permission denied") {
			t.Errorf("watch %q %q was cancelled with %q", tc.key, tc.end, resp.CancelReason)
		}
		cancel()
	}
	_, _, err := tryList(s, "/b/", kvstore.Position{})
	wantErr(t, err, kvstore.ErrDenied)
	if !strings.Contains(err.Error(), `"/b/"`) || !strings.Contains(err.Error(), "reader") {
		t.Errorf("%v names neither range nor caller", err)
	}
	wantErr(t, watch(t, s, "/b/", kvstore.Position{}).end(), kvstore.ErrDenied)
	wantErr(t, watch(t, s, "", kvstore.Position{}).end(), kvstore.ErrDenied)
}

func verdict(t *testing.T, what string, allowed bool, err error) {
	t.Helper()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if got := status.Code(err); allowed && got != codes.OK || !allowed && got != codes.PermissionDenied {
		t.Errorf("%s: %v", what, err)
	}
}

func create(t *testing.T, w pb.Watch_WatchClient, req *pb.WatchCreateRequest) {
	t.Helper()
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
		t.Fatal(err)
	}
}

// The port answers a stock client as etcd answers it.
func TestLikeEtcd(t *testing.T) {
	c := newCA(t)
	e := startEtcd(t, c, "", "")
	real := open(t, e.config("tester"))
	mem := kvstore.NewMemory(kvstore.MemoryOptions{})
	t.Cleanup(mem.Close)
	port := serve(t, c, "", mem, everything).open(t, "tester")
	for i := range 30 {
		for _, s := range []kvstore.Store{real, mem} {
			put(t, s, fmt.Sprintf("/a/%02d", i), strings.Repeat("x", i))
		}
	}
	var rev int64
	for _, s := range []kvstore.Store{real, mem} {
		commit(t, s, kvstore.Put("/a/00", []byte("again"), 0), kvstore.Put("/b", []byte("b"), 0))
		rev = commit(t, s, kvstore.Delete("/a/07")).Revision
	}
	for name, opts := range map[string][]clientv3.OpOption{
		"key":        {},
		"prefix":     {clientv3.WithPrefix()},
		"limit":      {clientv3.WithPrefix(), clientv3.WithLimit(7)},
		"exact":      {clientv3.WithPrefix(), clientv3.WithLimit(29)},
		"count":      {clientv3.WithPrefix(), clientv3.WithCountOnly()},
		"keys":       {clientv3.WithPrefix(), clientv3.WithKeysOnly()},
		"old":        {clientv3.WithPrefix(), clientv3.WithRev(rev - 5)},
		"present":    {clientv3.WithPrefix(), clientv3.WithRev(rev), clientv3.WithLimit(3)},
		"from":       {clientv3.WithFromKey()},
		"range":      {clientv3.WithRange("/a/12")},
		"empty":      {clientv3.WithRange("/a")},
		"future":     {clientv3.WithPrefix(), clientv3.WithRev(rev + 1)},
		"ascending":  {clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend)},
		"negative":   {clientv3.WithPrefix(), clientv3.WithRev(-1)},
		"everything": {clientv3.WithPrefix()},
	} {
		key := "/a/0"
		if name == "everything" {
			key = ""
		}
		want, wantErr := real.Client().Get(t.Context(), key, opts...)
		got, err := port.Client().Get(t.Context(), key, opts...)
		if wantErr != nil || err != nil {
			if !errors.Is(err, wantErr) {
				t.Errorf("%s: %v, etcd says %v", name, err, wantErr)
			}
			continue
		}
		if g, w := summary(got), summary(want); g != w {
			t.Errorf("%s:\n%s\netcd says\n%s", name, g, w)
		}
		stream, err := port.Client().GetStream(t.Context(), key, opts...)
		if err != nil {
			t.Fatal(err)
		}
		merged, err := clientv3.GetStreamToGetResponse(stream)
		if err != nil {
			t.Fatal(err)
		}
		if g, w := summary(merged), summary(want); g != w {
			t.Errorf("%s streamed:\n%s\netcd says\n%s", name, g, w)
		}
	}
	for name, opts := range map[string][]clientv3.OpOption{
		"descending": {clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)},
		"by value":   {clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)},
		"filtered":   {clientv3.WithPrefix(), clientv3.WithMinModRev(3)},
	} {
		_, err := port.Client().Get(t.Context(), "/a/", opts...)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	st, err := port.Client().Status(t.Context(), port.Client().Endpoints()[0])
	if err != nil || st.Header.ClusterId != mem.Position().StoreID {
		t.Errorf("status %v: %v", st, err)
	}
}

// summary leaves out what a Memory does not have: member, term and version.
func summary(r *clientv3.GetResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d count %d more %v\n", r.Header.Revision, r.Count, r.More)
	for _, kv := range r.Kvs {
		fmt.Fprintf(&b, "%s=%q %d %d %d %v\n", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Lease, kv.Version == 1)
	}
	return b.String()
}

// A stock client's watch: several on one stream, filters, cancelling, compaction.
func TestStockWatch(t *testing.T) {
	mem := filled(t)
	client := serve(t, newCA(t), "", mem, everything).open(t, "tester").Client()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all := client.Watch(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	one := client.Watch(ctx, "/a/5", clientv3.WithCreatedNotify())
	deletes := client.Watch(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
	past := client.Watch(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithRev(2))
	for _, w := range []clientv3.WatchChan{all, one, deletes} {
		if r := <-w; !r.Created {
			t.Fatalf("%v is no creation", r)
		}
	}
	got := map[string]string{}
	for n := 0; n < 10; {
		r := <-past
		for _, ev := range r.Events {
			got[string(ev.Kv.Key)] = string(ev.Kv.Value)
			n++
		}
	}
	if !reflect.DeepEqual(got["/a/9"], "value 9") {
		t.Fatalf("the past is %v", got)
	}
	pos := commit(t, mem, kvstore.Put("/a/5", []byte("new"), 0), kvstore.Delete("/a/6"), kvstore.Put("/b/x", nil, 0))
	for what, w := range map[string]struct {
		c    clientv3.WatchChan
		want string
	}{
		"all": {all, "PUT /a/5 new; DELETE /a/6 ; "}, "one": {one, "PUT /a/5 new; "}, "deletes": {deletes, "DELETE /a/6 ; "},
	} {
		r := <-w.c
		text := ""
		for _, ev := range r.Events {
			text += fmt.Sprintf("%s %s %s; ", ev.Type, ev.Kv.Key, ev.Kv.Value)
			if ev.Kv.ModRevision != pos.Revision {
				t.Errorf("%s: revision %d, want %d", what, ev.Kv.ModRevision, pos.Revision)
			}
		}
		if text != w.want {
			t.Errorf("%s: %q, want %q", what, text, w.want)
		}
	}
	if err := client.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
		t.Error(err)
	}
	mem.Compact(pos.Revision)
	compacted := client.Watch(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithRev(2))
	r := <-compacted
	if !errors.Is(r.Err(), rpctypes.ErrCompacted) {
		t.Errorf("a watch in the compacted past: %v", r.Err())
	}
	prev := client.Watch(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	if r := <-prev; r.Err() == nil || !strings.Contains(r.Err().Error(), "prev_kv") {
		t.Errorf("prev_kv: %v", r.Err())
	}
}

func TestReplicaBehindPort(t *testing.T) {
	replica := kvstore.NewReplica(kvstore.MemoryOptions{})
	t.Cleanup(replica.Close)
	s := serve(t, newCA(t), "", replica, everything).open(t, "reader")
	_, _, err := tryList(s, "/", kvstore.Position{})
	if err == nil || !strings.Contains(err.Error(), "not been read completely") {
		t.Fatalf("a replica that is not ready: %v", err)
	}
	fill := func(at kvstore.Position, key string) {
		sink := replica.Sink()
		if err := sink.Begin(at, nil); err != nil {
			t.Fatal(err)
		}
		if err := sink.Apply(at, []kvstore.Event{{KV: kvstore.KV{Key: key, ModRevision: at.Revision, CreateRevision: at.Revision}}}); err != nil {
			t.Fatal(err)
		}
		sink.Synced(at)
	}
	first := kvstore.Position{StoreID: 7, Revision: 40}
	fill(first, "/a")
	kvs, pos := list(t, s, "/", kvstore.Position{})
	wantKeys(t, kvs, "/a")
	if pos != first {
		t.Fatalf("read at %v, want %v", pos, first)
	}
	// A reader that has seen more than this lagging replica.
	ahead := kvstore.Position{StoreID: 7, Revision: 50}
	_, _, err = tryList(s, "/", ahead)
	wantErr(t, err, kvstore.ErrFutureRevision)
	wantErr(t, watch(t, s, "/", ahead).end(), kvstore.ErrFutureRevision)
	// The replica's source is exchanged: a watch must not go on as if nothing were.
	w := watch(t, s, "/", first).standing()
	fill(kvstore.Position{StoreID: 8, Revision: 60}, "/b")
	if err := w.end(); err == nil {
		t.Fatal("the watch survived")
	}
	_, _, err = tryList(s, "/", first)
	wantErr(t, err, kvstore.ErrOtherStore)
	wantErr(t, watch(t, s, "/", first).end(), kvstore.ErrOtherStore)
}
