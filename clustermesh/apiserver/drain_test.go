package apiserver

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// putRecords writes records of a rig's cluster, as the publisher would.
func (r *meshRig) putRecords(scope clustermesh.Scope, records ...clustermesh.Record) {
	r.t.Helper()
	for _, rec := range records {
		value, err := clustermesh.Encode(rec)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := r.store.Commit(r.t.Context(), kvstore.Put(clustermesh.KeyOf(scope, r.name, rec).String(), value, 0)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *meshRig) drainKeys() string {
	r.t.Helper()
	var keys []string
	err := r.port.eachDrain(r.t.Context(), r.store, func(kv kvstore.KV, _ *clustermesh.Drain) {
		keys = append(keys, strings.TrimPrefix(kv.Key, clustermesh.Root))
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Join(keys, " ")
}

// joinedRigs are two clusters, joined, whose checkout is global; cart is not.
func joinedRigs(t *testing.T) (a, b *meshRig) {
	a, b = startRig(t, "aws", 1), startRig(t, "gcp", 2)
	if err := b.join(a.invite()); err != nil {
		t.Fatal(err)
	}
	service := func(name string, global bool) *clustermesh.Service {
		return &clustermesh.Service{Name: clustermesh.ServiceName{Namespace: "shop", Name: name}, Global: global, Shared: global, Frontends: []netip.Addr{netip.MustParseAddr("172.20.0.1")}}
	}
	a.putRecords(clustermesh.ScopeExport, service("checkout", true))
	a.putRecords(clustermesh.ScopeLocal, service("cart", false))
	return a, b
}

func TestDrainAndBack(t *testing.T) {
	a, _ := joinedRigs(t)
	admin, ctx := a.admin(), t.Context()
	second := int64(time.Second)
	res, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Over: 100 * second, By: "ops@jump\x1b"})
	if err != nil || res.Warning != "" || res.Drain.Left != clustermesh.ShareAll || res.Drain.ByItself || strings.Contains(res.Drain.Drain.By, "\x1b") {
		t.Fatalf("%v %v", res, err)
	}
	if got := a.drainKeys(); got != "local/aws/drain/gcp" {
		t.Fatal(got)
	}
	a.setClock(50 * time.Second)
	st, err := admin.Status(ctx, &pb.StatusRequest{})
	if err != nil || len(st.Drains) != 1 || st.Drains[0].Left != 32768 && st.Drains[0].Left != 32767 {
		t.Fatalf("half way: %v %v", st.GetDrains(), err)
	}
	// Faster: from what is left.
	res, err = admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Over: 0})
	if err != nil || !strings.Contains(res.Warning, "was being drained already") || res.Drain.Left != 0 || res.Drain.Drain.From != st.Drains[0].Left {
		t.Fatalf("%v %v", res, err)
	}
	_, err = admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Over: second})
	wantRefusal(t, err, "has been drained since")
	// Back, and out again amid the way.
	if res, err = admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Over: 100 * second, Back: true}); err != nil || res.Drain.Left != 0 {
		t.Fatalf("%v %v", res, err)
	}
	a.setClock(80 * time.Second)
	if res, err = admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Over: 10 * second}); err != nil || res.Drain.Left < 16000 || res.Drain.Left > 20000 || res.Warning != "" {
		t.Fatalf("%v %v", res, err)
	}
	if res, err = admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Back: true}); err != nil || res.Drain.Left != clustermesh.ShareAll || a.drainKeys() != "" {
		t.Fatalf("%v %v %s", res, err, a.drainKeys())
	}
	_, err = admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Back: true})
	wantRefusal(t, err, "not drained by this cluster")
}

// A cluster that is back in full leaves no record for ever, and can be drained anew.
func TestDrainAfterBack(t *testing.T) {
	a, _ := joinedRigs(t)
	admin, ctx := a.admin(), t.Context()
	for _, req := range []*pb.DrainRequest{{Cluster: "gcp"}, {Cluster: "gcp", Back: true, Over: int64(time.Second)}} {
		if _, err := admin.Drain(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	a.setClock(2 * time.Second)
	if st, err := admin.Status(ctx, &pb.StatusRequest{}); err != nil || len(st.Drains) != 0 || a.drainKeys() == "" {
		t.Fatalf("%v %v", st.GetDrains(), err)
	}
	if _, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp", Back: true}); err == nil {
		t.Error("it was back already")
	}
	if _, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "aws", Service: "shop/checkout"}); err != nil {
		t.Fatal(err)
	}
	if got := a.drainKeys(); got != "export/aws/drain/aws/shop/checkout" {
		t.Error(got)
	}
	if _, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp"}); err != nil {
		t.Error(err)
	}
}

func TestDrainRefused(t *testing.T) {
	a, _ := joinedRigs(t)
	admin, ctx := a.admin(), t.Context()
	for _, test := range []struct {
		req  *pb.DrainRequest
		want string
	}{
		{&pb.DrainRequest{Cluster: "azure"}, "neither aws nor a peer of it"},
		{&pb.DrainRequest{Cluster: ""}, "cluster name is empty"},
		{&pb.DrainRequest{Cluster: "GCP"}, "not a DNS label"},
		{&pb.DrainRequest{Cluster: "gcp", Over: -1}, "-1ns is no time"},
		{&pb.DrainRequest{Cluster: "gcp", Over: int64(25 * time.Hour)}, "give --over from 0s to 24h"},
		{&pb.DrainRequest{Cluster: "gcp", Service: "checkout"}, "is no service"},
		{&pb.DrainRequest{Cluster: "gcp", Service: "shop/a b"}, "has a character"},
		{&pb.DrainRequest{Cluster: "gcp", Service: "shop/none"}, "has no service shop/none"},
		{&pb.DrainRequest{Cluster: "gcp", Service: "shop/cart"}, "is not global"},
		{&pb.DrainRequest{Cluster: "aws", Back: true}, "is not drained"},
	} {
		_, err := admin.Drain(ctx, test.req)
		wantRefusal(t, err, test.want)
	}
	if got := a.drainKeys(); got != "" {
		t.Errorf("written: %s", got)
	}
}

func TestDrainOfTheLastCluster(t *testing.T) {
	a, _ := joinedRigs(t)
	admin, ctx := a.admin(), t.Context()
	if res, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "aws"}); err != nil || res.Warning != "" || !res.Drain.ByItself {
		t.Fatalf("%v %v", res, err)
	}
	if res, err := admin.Drain(ctx, &pb.DrainRequest{Cluster: "gcp"}); err != nil || !strings.Contains(res.Warning, "no cluster is left") {
		t.Fatalf("%v %v", res, err)
	}
	if got := a.drainKeys(); got != "export/aws/drain/aws local/aws/drain/gcp" {
		t.Error(got)
	}
}

// What was said of a peer goes with it; what another's name begins with stays.
func TestRemovedPeerLeavesNoDrain(t *testing.T) {
	a, _ := joinedRigs(t)
	admin, ctx := a.admin(), t.Context()
	for _, req := range []*pb.DrainRequest{{Cluster: "gcp"}, {Cluster: "gcp", Service: "shop/checkout"}, {Cluster: "aws"}} {
		if _, err := admin.Drain(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	a.putRecords(clustermesh.ScopeLocal, &clustermesh.Drain{Cluster: "gcp2", Start: time.Now(), From: clustermesh.ShareAll})
	if _, err := admin.RemovePeer(ctx, &pb.RemovePeerRequest{Cluster: "gcp"}); err != nil {
		t.Fatal(err)
	}
	if got := a.drainKeys(); got != "export/aws/drain/aws local/aws/drain/gcp2" {
		t.Error(got)
	}
}
