package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// joined starts aws and gcp, joined.
func joined(t *testing.T) (a, b *meshRig) {
	t.Helper()
	a, b = startRig(t, "aws", 1), startRig(t, "gcp", 2)
	if err := b.join(a.invite()); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// expiredLeaf ended half a minute ago.
func expiredLeaf(t *testing.T, ca *certs.CA, name certs.Name) *certs.Leaf {
	t.Helper()
	leaf, err := certs.NewLeaf("", name, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = leaf.Renew(t.Context(), func(_ context.Context, csr []byte) ([]byte, []byte, error) {
		chain, err := ca.Sign(csr, name, 30*time.Second, time.Now().Add(-time.Minute))
		return chain, nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// callers are connections of every role.
func callers(t *testing.T, a, b *meshRig) map[role]*grpc.ClientConn {
	t.Helper()
	out := make(map[role]*grpc.ClientConn)
	for r, leaf := range map[role]*certs.Leaf{
		roleStranger:   leafOf(t, rigCA(t, "stranger"), certs.APIServer("stranger"), time.Hour),
		roleExpired:    expiredLeaf(t, a.ca, certs.Node("aws", "n1")),
		roleNode:       a.leaf(certs.Node("aws", "n1"), time.Hour),
		roleServer:     a.leaf(certs.APIServer("aws"), time.Hour),
		rolePeerNode:   b.leaf(certs.Node("gcp", "m1"), time.Hour),
		rolePeerServer: b.leaf(certs.APIServer("gcp"), time.Hour),
	} {
		cc, err := grpc.NewClient("passthrough:///"+a.addr, grpc.WithTransportCredentials(credentials.NewTLS(a.tls(leaf))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cc.Close() })
		out[r] = cc
	}
	return out
}

// TestAccessTable calls every method that is registered, in every role.
func TestAccessTable(t *testing.T) {
	a, b := joined(t)
	conns := callers(t, a, b)
	registered := make(map[string]bool)
	for service, info := range a.port.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			method := "/" + service + "/" + m.Name
			registered[method] = true
			for r, cc := range conns {
				if method == "/tombolo.v1.Mesh/Leave" && r == rolePeerServer {
					continue // it would work, and take gcp out
				}
				err := call(t, cc, method, m.IsServerStream || m.IsClientStream)
				refused := err != nil && strings.Contains(err.Error(), "call of "+method+" refused")
				allowed := access[method]&r != 0
				if access[method] == 0 && strings.HasPrefix(service, "etcdserverpb.") {
					// The write half and all the rest: the etcd package's own default.
					if code := status.Code(err); code != codes.Unimplemented && code != codes.Unauthenticated && code != codes.PermissionDenied {
						t.Errorf("%s as role %b: got %v", method, r, err)
					}
					continue
				}
				if allowed == refused {
					t.Errorf("%s as role %b: allowed %v, got %v", method, r, allowed, err)
				}
				if refused && AsRefusal(err) == nil {
					t.Errorf("%s: no problem in %v", method, err)
				}
			}
		}
	}
	for method := range access {
		if !registered[method] {
			t.Errorf("the table has %s, which nobody serves", method)
		}
	}
	for _, odd := range []string{"/etcdserverpb.KV/put", "/tombolo.v1.Admin/Invite", "//etcdserverpb.KV/Range"} {
		if err := call(t, conns[roleServer], odd, false); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", odd, err)
		}
	}
}

// call makes a call with an empty message and waits a moment for a refusal.
func call(t *testing.T, cc *grpc.ClientConn, method string, stream bool) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if !stream {
		return cc.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	// A refusal may come before the message is out: RecvMsg has its words.
	if err := s.SendMsg(&emptypb.Empty{}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(&emptypb.Empty{})
}

func TestWhoMayRead(t *testing.T) {
	a, b := joined(t)
	for _, key := range []string{"export/aws/node/x", "local/aws/policy/x", "mirror/gcp/node/x", "private/aws/token/x", "export/gcp/node/x"} {
		if _, err := a.store.Commit(t.Context(), kvstore.Put(clustermesh.Root+key, []byte("x"), 0)); err != nil {
			t.Fatal(err)
		}
	}
	stranger := rigCA(t, "stranger")
	for name, c := range map[string]struct {
		leaf *certs.Leaf
		read []string
	}{
		"own node":     {a.leaf(certs.Node("aws", "n1"), time.Hour), []string{"export/aws/", "local/aws/", "mirror/", "mirror/gcp/"}},
		"own server":   {a.leaf(certs.APIServer("aws"), time.Hour), []string{"export/aws/", "local/aws/", "mirror/", "mirror/gcp/"}},
		"peer node":    {b.leaf(certs.Node("gcp", "m1"), time.Hour), []string{"export/aws/"}},
		"peer server":  {b.leaf(certs.APIServer("gcp"), time.Hour), []string{"export/aws/"}},
		"stranger":     {leafOf(t, stranger, certs.APIServer("stranger"), time.Hour), nil},
		"claims aws":   {leafOf(t, rigCA(t, "aws"), certs.Node("aws", "n1"), time.Hour), nil},
		"expired node": {expiredLeaf(t, a.ca, certs.Node("aws", "n1")), nil},
		"nobody":       {nil, nil},
	} {
		s := a.reader(c.leaf)
		for _, prefix := range []string{"export/aws/", "local/aws/", "mirror/", "mirror/gcp/", "private/aws/", "private/", "export/gcp/", "export/", "export/aw", ""} {
			n, err := list(t.Context(), s, clustermesh.Root+prefix)
			may := slices.Contains(c.read, prefix)
			if may && (err != nil || n == 0) || !may && err == nil {
				t.Errorf("%s reads %q: %d keys, %v, allowed %v", name, prefix, n, err, may)
			}
			if !may && err != nil && !errors.Is(err, kvstore.ErrDenied) {
				t.Errorf("%s reads %q: %v is not a denial", name, prefix, err)
			}
		}
		if _, err := s.Commit(t.Context(), kvstore.Put(clustermesh.Root+"export/aws/node/evil", nil, 0)); err == nil {
			t.Errorf("%s writes", name)
		}
	}
}

func TestStrangersHearWhy(t *testing.T) {
	a := startRig(t, "aws", 1)
	stranger := leafOf(t, rigCA(t, "gcp"), certs.APIServer("gcp"), time.Hour)
	_, err := a.dial(stranger).Hello(t.Context(), &pb.HelloRequest{})
	wantRefusal(t, err, "spiffe://gcp/apiserver", "no CA bundle", "mesh join")
	_, err = a.dial(nil).Leave(t.Context(), &pb.LeaveRequest{})
	wantRefusal(t, err, "no certificate was shown", "mesh invite")
	_, err = a.dial(expiredLeaf(t, a.ca, certs.Node("aws", "n1"))).RegisterEndpoint(t.Context(), &pb.RegisterEndpointRequest{})
	wantRefusal(t, err, "node/n1", "expired on")
}

func TestRemovalClosesConnections(t *testing.T) {
	a, b := joined(t)
	leaf := b.leaf(certs.Node("gcp", "m1"), time.Hour)
	reader := a.reader(leaf)
	export := clustermesh.ScopePrefix(clustermesh.ScopeExport, "aws")
	if _, err := list(t.Context(), reader, export); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		first := true
		for _, err := range reader.Watch(t.Context(), export, kvstore.Position{StoreID: a.store.Position().StoreID, Revision: 1}) {
			if first {
				first = false
				close(started)
			}
			if err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	<-started
	// A connection of its own, and a client that would resume its session.
	conf := a.tls(leaf)
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	raw, err := tls.Dial("tcp", a.addr, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the connection is taken in", func() bool {
		a.port.conns.mu.Lock()
		defer a.port.conns.mu.Unlock()
		for c := range a.port.conns.all {
			if c.err == nil && c.conn.RemoteAddr().String() == raw.LocalAddr().String() {
				return true
			}
		}
		return false
	})
	begin := time.Now()
	if _, _, err := a.port.RemovePeer(t.Context(), "gcp", true); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the watch ended without an error")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the watch goes on")
	}
	raw.SetReadDeadline(time.Now().Add(5 * time.Second))
	for buf := make([]byte, 4096); err == nil; {
		_, err = raw.Read(buf)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the connection stays open")
	}
	t.Logf("closed after %v", time.Since(begin).Round(time.Millisecond))
	if _, err := list(t.Context(), reader, export); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("reads after removal: %v", err)
	}
	again, err := tls.Dial("tcp", a.addr, conf)
	if err == nil {
		if again.ConnectionState().DidResume {
			t.Error("the session was resumed")
		}
		again.Close()
	}
}

func TestConnectionEndsWithItsCertificate(t *testing.T) {
	a := startRig(t, "aws", 1)
	conn := a.dial(a.leaf(certs.Node("aws", "n1"), 2*time.Second))
	if _, err := conn.Hello(t.Context(), &pb.HelloRequest{}); err != nil {
		t.Fatal(err)
	}
	if n := a.port.conns.readers("aws"); n != 1 {
		t.Errorf("%d connections", n)
	}
	waitUntil(t, "the connection ends", func() bool { return a.port.conns.readers("aws") == 0 })
}

func TestOwnCertificateIsRenewed(t *testing.T) {
	a := startRig(t, "aws", 1, func(_ *meshRig, c *PortConfig) { c.LeafTTL = 2 * time.Second })
	first := a.port.cfg.Leaf.Expires()
	waitUntil(t, "a later end", func() bool { return a.port.cfg.Leaf.Expires().After(first) })
	conn := a.dial(a.leaf(certs.Node("aws", "n1"), time.Hour))
	if got := conn.state.PeerCertificates[0].NotAfter; !got.After(first) {
		t.Errorf("the certificate until %v is still served", got)
	}
	if _, err := conn.Hello(t.Context(), &pb.HelloRequest{}); err != nil {
		t.Error(err)
	}
}

func TestStrangersAreBounded(t *testing.T) {
	a := startRig(t, "aws", 1, func(_ *meshRig, c *PortConfig) { c.Strangers = 3; c.Handshake = 300 * time.Millisecond })
	var open []*tls.Conn
	for range 3 {
		c, err := tls.Dial("tcp", a.addr, a.tls(nil))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	waitUntil(t, "three strangers", func() bool { a.port.conns.mu.Lock(); defer a.port.conns.mu.Unlock(); return a.port.conns.news == 3 })
	c, err := tls.Dial("tcp", a.addr, a.tls(nil))
	if err == nil {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err = c.Read(make([]byte, 100)); err == nil {
			_, err = c.Read(make([]byte, 100))
		}
		c.Close()
	}
	if err == nil {
		t.Error("a fourth stranger is let in")
	}
	// Own nodes still come in.
	if _, err := a.dial(a.leaf(certs.Node("aws", "n1"), time.Hour)).Hello(t.Context(), &pb.HelloRequest{}); err != nil {
		t.Error(err)
	}
	// Who never finishes the handshake is cut off.
	idle, err := net.Dial("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	idle.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = idle.Read(make([]byte, 1))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("a handshake may take forever")
	}
	for _, c := range open {
		c.Close()
	}
	waitUntil(t, "strangers gone", func() bool { a.port.conns.mu.Lock(); defer a.port.conns.mu.Unlock(); return a.port.conns.news == 0 })
}

func TestBundleRollsOver(t *testing.T) {
	a, b := joined(t)
	next := rigCA(t, "gcp")
	// gcp announces a further CA.
	b.own.Capabilities = []string{"x"}
	rec := b.port.ownCluster()
	rec.CABundle = append(rec.CABundle, next.Bundle()...)
	value, err := clustermesh.Encode(rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Commit(t.Context(), kvstore.Put(clustermesh.ClusterKey(clustermesh.ScopeExport, "gcp"), value, 0)); err != nil {
		t.Fatal(err)
	}
	byNext := leafOf(t, next, certs.Node("gcp", "m1"), time.Hour)
	waitUntil(t, "aws trusts the next CA of gcp", func() bool {
		_, err := a.bundles.Verify(byNext.Certificate().Certificate, time.Now())
		return err == nil
	})
	if n, err := list(t.Context(), a.reader(byNext), clustermesh.ScopePrefix(clustermesh.ScopeExport, "aws")); err != nil || n == 0 {
		t.Errorf("%d keys, %v", n, err)
	}
	// A CA of somebody else is not taken over, and said.
	rec.CABundle = append(rec.CABundle, a.ca.Bundle()...)
	if value, err = clustermesh.Encode(rec); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Commit(t.Context(), kvstore.Put(clustermesh.ClusterKey(clustermesh.ScopeExport, "gcp"), value, 0)); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "a problem", func() bool {
		return slices.ContainsFunc(a.port.Problems(), func(p Problem) bool { return strings.Contains(p.Why, "a CA of cluster aws") })
	})
	if certs.SharedRoot(a.bundles.Get("gcp"), a.ca.Bundle()) != nil {
		t.Error("gcp can speak for aws")
	}
}

// A peer that announces another bundle every moment makes us write, and all our
// agents connect again, a few times and then seldom.
func TestPeerThatAnnouncesWithoutEnd(t *testing.T) {
	a, b := joined(t)
	waitUntil(t, "reachable", func() bool { s := a.port.PeerStatus(); return len(s) == 1 && s[0].Reachable })
	from := a.store.Position()
	next := rigCA(t, "gcp").Bundle()
	for i := range 40 {
		rec := b.port.ownCluster()
		if i%2 == 0 {
			rec.CABundle = append(rec.CABundle, next...)
		}
		value, err := clustermesh.Encode(rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.store.Commit(t.Context(), kvstore.Put(clustermesh.ClusterKey(clustermesh.ScopeExport, "gcp"), value, 0)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	written := 0
	for batch, err := range a.store.Watch(ctx, a.port.peers.prefix(), from) {
		if err != nil {
			t.Fatal(err)
		}
		written += len(batch.Events)
	}
	if written == 0 || written > announceBurst {
		t.Errorf("the record of gcp was written %d times, at most %d are due", written, announceBurst)
	}
}

// A peer's CA can make any number of names: they share one budget. Own nodes
// are counted one by one.
func TestPeerNamesShareABudget(t *testing.T) {
	a := startRig(t, "aws", 1, func(_ *meshRig, c *PortConfig) { c.ClusterBudget = etcd.Budget{RequestsPerSecond: 5} })
	b := startRig(t, "gcp", 2)
	if err := b.join(a.invite()); err != nil {
		t.Fatal(err)
	}
	export := clustermesh.ScopePrefix(clustermesh.ScopeExport, "aws")
	var err error
	for n := 0; n < 40 && err == nil; n++ {
		name := certs.Node("gcp", fmt.Sprintf("n%d", n))
		_, err = list(t.Context(), a.reader(leafOf(t, b.ca, name, time.Hour)), export)
	}
	if err == nil || !strings.Contains(err.Error(), "cluster gcp exceeds its budget of 5 requests per second") {
		t.Errorf("40 names at once: %v", err)
	}
	for n := range 20 {
		if _, err := list(t.Context(), a.reader(a.leaf(certs.Node("aws", fmt.Sprintf("n%d", n)), time.Hour)), export); err != nil {
			t.Fatalf("own node %d: %v", n, err)
		}
	}
}

// A cluster with gateways names the peers whose version does not know of them.
func TestPeerThatKnowsNoGateways(t *testing.T) {
	a, b := joined(t)
	announce := func(capabilities ...string) {
		t.Helper()
		rec := b.port.ownCluster()
		rec.Capabilities = capabilities
		value, err := clustermesh.Encode(rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.store.Commit(t.Context(), kvstore.Put(clustermesh.ClusterKey(clustermesh.ScopeExport, "gcp"), value, 0)); err != nil {
			t.Fatal(err)
		}
	}
	named := func() bool {
		return slices.ContainsFunc(a.port.Problems(), func(p Problem) bool {
			return p.Object == "peer gcp" && strings.Contains(p.Why, "the topology of this cluster is gateway")
		})
	}
	heard := func(capability string) {
		t.Helper()
		waitUntil(t, "aws hears "+capability, func() bool {
			c := a.port.contacts.get("gcp")
			if c == nil {
				return false
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.said != nil && slices.Contains(c.said.Capabilities, capability)
		})
	}
	announce("zstd")
	heard("zstd")
	if named() {
		t.Error("a mesh needs no gateways")
	}
	a.mu.Lock()
	a.own.Topology = clustermesh.TopologyGateway
	a.mu.Unlock()
	if !named() {
		t.Errorf("gcp is not named: %v", a.port.Problems())
	}
	announce(capabilities...)
	heard(clustermesh.CapabilityGateway)
	if named() {
		t.Error("gcp is named, though its version is new")
	}
}

func TestUnreachablePeerIsAProblem(t *testing.T) {
	a, b := joined(t)
	waitUntil(t, "reachable", func() bool { s := a.port.PeerStatus(); return len(s) == 1 && s[0].Reachable })
	b.stop()
	waitUntil(t, "a problem", func() bool {
		s, q := a.port.PeerStatus(), a.port.Problems()
		return !s[0].Reachable && s[0].Error != "" && s[0].LastSeen > 0 && len(q) == 1 && strings.Contains(q[0].Fix, "mesh remove gcp")
	})
	if a.peerNames() != "gcp" {
		t.Error("silence was taken for deletion")
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Run("ports", func(t *testing.T) {
		a, b := joined(t)
		waitUntil(t, "followed", func() bool { s := a.port.PeerStatus(); return len(s) == 1 && s[0].Reachable })
		_ = fmt.Sprint(b.name)
	})
	goleak.VerifyNone(t, before)
}

// A node that comes with a service-account token is the one that the review
// names, and no other; a server without reviews takes no such token.
func TestServiceAccountTokenRegistersItsNode(t *testing.T) {
	review := func(_ context.Context, token string) (string, error) {
		if token != "good" {
			return "", Refuse(codes.Unauthenticated, "service-account token refused", "", "unknown")
		}
		return "n1", nil
	}
	on := startRig(t, "aws", 1, func(_ *meshRig, c *PortConfig) { c.ReviewNode = review })
	off := startRig(t, "gcp", 2)
	for _, c := range []struct {
		rig         *meshRig
		node, token string
		csr         bool
		want        codes.Code
	}{
		{on, "n1", "good", true, codes.OK},
		{on, "n2", "good", true, codes.PermissionDenied},
		{on, "n1", "bad", true, codes.Unauthenticated},
		{on, "n1", "good", false, codes.InvalidArgument},
		{off, "n1", "good", true, codes.FailedPrecondition},
	} {
		leaf, err := certs.NewLeaf("", certs.Node(c.rig.name, c.node), nil)
		if err != nil {
			t.Fatal(err)
		}
		req := &pb.RegisterNodeRequest{Node: c.node, WireguardKey: make([]byte, 32), ServiceAccountToken: c.token, Clock: time.Now().UnixNano()}
		req.WireguardKey[0] = 1
		if c.csr {
			if req.Csr, err = leaf.CSR(); err != nil {
				t.Fatal(err)
			}
		}
		conn, err := grpc.NewClient("passthrough:///"+c.rig.addr, grpc.WithTransportCredentials(credentials.NewTLS(certs.BundleTLS(nil, c.rig.ca.Bundle(), certs.APIServer(c.rig.name)))))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := pb.NewMeshClient(conn).RegisterNode(t.Context(), req)
		conn.Close()
		if status.Code(err) != c.want || (err == nil) != (len(resp.GetChain()) > 0) {
			t.Errorf("node %s, token %q: %v, expected %v", c.node, c.token, err, c.want)
		}
	}
}
