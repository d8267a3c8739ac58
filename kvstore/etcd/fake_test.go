package etcd_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// oldKV is an etcd before 3.7: it has no RangeStream.
type oldKV struct {
	pb.KVClient
	pages atomic.Int64
	after func(page int64) // called after each page
}

func (*oldKV) RangeStream(context.Context, *pb.RangeRequest, ...grpc.CallOption) (pb.KV_RangeStreamClient, error) {
	return nil, status.Error(codes.Unimplemented, "unknown method RangeStream for service etcdserverpb.KV")
}

func (o *oldKV) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	resp, err := o.KVClient.Range(ctx, r, opts...)
	o.after(o.pages.Add(1))
	return resp, err
}

func TestPages(t *testing.T) {
	mem := kvstore.NewMemory(kvstore.MemoryOptions{})
	t.Cleanup(mem.Close)
	for i := range 100 {
		var ops []kvstore.Op
		for j := range 120 {
			ops = append(ops, kvstore.Put(fmt.Sprintf("/k/%05d", i*120+j), []byte("v"), 0))
		}
		commit(t, mem, ops...)
	}
	at := put(t, mem, "/other", "")
	conn := serve(t, newCA(t), "", mem, everything).open(t, "old").Client().ActiveConnection()
	// Between the pages the store changes: the list must not.
	kv := &oldKV{KVClient: pb.NewKVClient(conn), after: func(page int64) {
		commit(t, mem, kvstore.Put("/k/11999", []byte("changed"), 0), kvstore.Put(fmt.Sprintf("/k/x%d", page), nil, 0))
	}}
	s := etcd.NewStore(kv, nil, nil, "old", nil)
	kvs, pos := list(t, s, "/k/", kvstore.Position{})
	if len(kvs) != 12000 || string(kvs[11999].Value) != "v" || pos != at || kv.pages.Load() != 3 {
		t.Fatalf("%d keys at %v (want %v) in %d pages, the last %v", len(kvs), pos, at, kv.pages.Load(), kvs[len(kvs)-1])
	}
}

// script is a server that answers a watch with what it is told.
type script struct {
	pb.KVClient
	grpc.ClientStream
	answers []*pb.WatchResponse
}

const scriptID = 5

func (s *script) Range(context.Context, *pb.RangeRequest, ...grpc.CallOption) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: scriptID, Revision: 10}}, nil
}

func (s *script) Watch(context.Context, ...grpc.CallOption) (pb.Watch_WatchClient, error) {
	return s, nil
}

func (s *script) Send(*pb.WatchRequest) error { return nil }

func (s *script) Recv() (*pb.WatchResponse, error) {
	if len(s.answers) == 0 {
		return nil, io.EOF
	}
	r := s.answers[0]
	s.answers = s.answers[1:]
	return r, nil
}

func answer(id uint64, rev int64, keys ...string) *pb.WatchResponse {
	r := &pb.WatchResponse{Header: &pb.ResponseHeader{ClusterId: id, Revision: rev}}
	for _, key := range keys {
		r.Events = append(r.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev}})
	}
	return r
}

// What a broken or lying server sends is never passed through.
func TestWatchDistrusts(t *testing.T) {
	created := answer(scriptID, 10)
	created.Created = true
	part := answer(scriptID, 11, "/a/1")
	part.Fragment = true
	endless := []*pb.WatchResponse{created}
	large := answer(scriptID, 11, "/a/1")
	large.Events[0].Kv.Value, large.Fragment = make([]byte, 1<<20), true
	for range 300 {
		endless = append(endless, large)
	}
	for name, tc := range map[string]struct {
		answers []*pb.WatchResponse
		batches int // with events
		is      error
		says    string
	}{
		"other store from the start": {answers: []*pb.WatchResponse{answer(6, 11, "/a/1")}, is: kvstore.ErrOtherStore},
		"other store half way":       {answers: []*pb.WatchResponse{created, answer(scriptID, 11, "/a/1"), answer(6, 12, "/a/1")}, batches: 1, is: kvstore.ErrOtherStore},
		"other store's bookmark":     {answers: []*pb.WatchResponse{created, answer(6, 500)}, is: kvstore.ErrOtherStore},
		"no store ID":                {answers: []*pb.WatchResponse{created, answer(0, 11, "/a/1")}, says: "no cluster ID"},
		"back in time":               {answers: []*pb.WatchResponse{created, answer(scriptID, 12, "/a/1"), answer(scriptID, 11, "/a/1")}, batches: 1, says: "went back"},
		"twice":                      {answers: []*pb.WatchResponse{created, answer(scriptID, 11, "/a/1"), answer(scriptID, 11, "/a/1")}, batches: 1, says: "went back"},
		"foreign key":                {answers: []*pb.WatchResponse{created, answer(scriptID, 11, "/b\x1b[2J")}, says: `/b\x1b[2J, which was not asked for`},
		"broken off in a fragment":   {answers: []*pb.WatchResponse{created, part}, says: "ended the watch"},
		"fragments without end":      {answers: endless, says: "fragments of more than"},
		"fragments":                  {answers: []*pb.WatchResponse{created, part, answer(scriptID, 11, "/a/2")}, batches: 1, says: "ended the watch"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &script{answers: tc.answers}
			s := etcd.NewStore(fake, fake, nil, "fake", nil)
			n := 0
			var last error
			for b, err := range s.Watch(t.Context(), "/a/", kvstore.Position{StoreID: scriptID, Revision: 10}) {
				last = err
				if len(b.Events) > 0 {
					n++
				}
			}
			if tc.is != nil {
				wantErr(t, last, tc.is)
			}
			if n != tc.batches || last == nil || !strings.Contains(last.Error(), tc.says) {
				t.Fatalf("%d batches, then %v", n, last)
			}
		})
	}
}

// A renewed certificate is used at the next connection, without a new Store.
func TestCertificateReload(t *testing.T) {
	c := newCA(t)
	mem := filled(t)
	first := serve(t, c, "", mem, everything)
	var leaf atomic.Pointer[tls.Certificate]
	set := func(name string) {
		cert := c.leaf(name)
		leaf.Store(&cert)
	}
	set("before")
	s := open(t, etcd.Config{Endpoints: []string{first.addr}, TLS: &tls.Config{
		RootCAs: c.pool, MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return leaf.Load(), nil },
	}})
	list(t, s, "/a/", kvstore.Position{})
	w := watch(t, s, "/a/", kvstore.Position{}).standing()
	set("after")
	first.grpc.Stop()
	if err := w.end(); err == nil || !strings.Contains(err.Error(), first.addr) {
		t.Fatalf("the watch ended with %v", err)
	}
	second := serve(t, c, first.addr, mem, everything)
	retry(t, func() error {
		if _, _, err := tryList(s, "/a/", kvstore.Position{}); err != nil {
			return err
		}
		return errReached
	}, errReached)
	if r := readers(second); len(r) != 1 || r["after"].Requests == 0 {
		t.Fatalf("connected as %v", r)
	}
}
