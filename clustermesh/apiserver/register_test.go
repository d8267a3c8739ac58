package apiserver

import (
	"context"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func (r *meshRig) nodeToken(node string) certs.Token {
	r.t.Helper()
	tok, err := r.port.NodeToken(r.t.Context(), node, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	if tok, err = certs.ParseToken(tok.Text()); err != nil {
		r.t.Fatal(err)
	}
	return tok
}

func nodeRequest(node string, tok certs.Token, csr []byte) *pb.RegisterNodeRequest {
	return &pb.RegisterNodeRequest{
		Node: node, TokenId: tok.ID, Secret: tok.Secret, Csr: csr, WireguardKey: append(make([]byte, 31), 1),
		WireguardEndpoint: "192.0.2.1:51820", UnderlayAddresses: [][]byte{{192, 0, 2, 1}}, Clock: time.Now().UnixNano(),
	}
}

func newLeaf(t *testing.T, name certs.Name) *certs.Leaf {
	t.Helper()
	leaf, err := certs.NewLeaf(t.TempDir(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// register takes a node in by token, pinned to the CA that the token names.
func (r *meshRig) register(leaf *certs.Leaf, tok certs.Token) error {
	conn, err := dialMesh(r.t.Context(), tok.Addresses, certs.PinnedTLS(nil, tok.Fingerprint, certs.APIServer(tok.Cluster)))
	if err != nil {
		return err
	}
	defer conn.close()
	return leaf.Renew(r.t.Context(), func(ctx context.Context, csr []byte) ([]byte, []byte, error) {
		answer, err := conn.RegisterNode(ctx, nodeRequest(leaf.Name().Node, tok, csr))
		if err != nil {
			return nil, nil, err
		}
		if answer.Node.Number != 1 || answer.Cluster.Name != r.name || len(answer.Cluster.MeshAddresses) == 0 {
			r.t.Errorf("answer %v", answer)
		}
		return answer.Chain, answer.Bundle, nil
	})
}

func TestNodeRegistersByToken(t *testing.T) {
	a := startRig(t, "aws", 1)
	leaf, tok := newLeaf(t, certs.Node("aws", "n1")), a.nodeToken("n1")
	if err := a.register(leaf, tok); err != nil {
		t.Fatal(err)
	}
	if got := a.reg.nodes["n1"]; got.WireGuardKey[31] != 1 || got.WireGuardEndpoint != "192.0.2.1:51820" || len(got.UnderlayAddresses) != 1 {
		t.Errorf("%+v", got)
	}
	// From now on with its certificate, and without a token.
	conn := a.dial(leaf)
	req := nodeRequest("n1", certs.Token{}, nil)
	if answer, err := conn.RegisterNode(t.Context(), req); err != nil || len(answer.Chain) > 0 {
		t.Errorf("%v %v", answer, err)
	}
	req.Node = "n2"
	_, err := conn.RegisterNode(t.Context(), req)
	wantRefusal(t, err, `is for node "n1", not for "n2"`)
}

func TestNodeTokenRefusals(t *testing.T) {
	a := startRig(t, "aws", 1)
	csr, err := newLeaf(t, certs.Node("aws", "n1")).CSR()
	if err != nil {
		t.Fatal(err)
	}
	conn := a.dial(nil)
	used := a.nodeToken("n1")
	first := newLeaf(t, certs.Node("aws", "n1"))
	if err := a.register(first, used); err != nil {
		t.Fatal(err)
	}
	join, err := a.port.Invite(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	forged := a.nodeToken("n1")
	forged.Secret = append([]byte{}, forged.Secret...)
	forged.Secret[3] ^= 1
	for name, c := range map[string]struct {
		node string
		tok  certs.Token
		edit func(*pb.RegisterNodeRequest)
		want []string
	}{
		"used":         {"n1", used, nil, []string{`used by "n1"`, "good for once"}},
		"of another":   {"n2", a.nodeToken("n1"), nil, []string{`for node "n1", not for "n2"`}},
		"forged":       {"n1", forged, nil, []string{"knows no such token"}},
		"join token":   {"n1", join, nil, []string{"it is a join token"}},
		"none":         {"n1", certs.Token{}, nil, []string{"neither a token nor a certificate", "--token-file"}},
		"no request":   {"n1", a.nodeToken("n1"), func(r *pb.RegisterNodeRequest) { r.Csr = nil }, []string{"first certificate"}},
		"bad request":  {"n1", a.nodeToken("n1"), func(r *pb.RegisterNodeRequest) { r.Csr = r.Csr[:20] }, []string{"malformed"}},
		"clock":        {"n1", a.nodeToken("n1"), func(r *pb.RegisterNodeRequest) { r.Clock += int64(time.Hour) }, []string{"clock of node n1 says", "1h0m0s"}},
		"unknown node": {"n9", a.nodeToken("n9"), nil, []string{"no node n9"}},
		"upper case":   {"N1", a.nodeToken("n1"), nil, []string{"not a DNS name"}},
		"climbing":     {"n1/../n2", a.nodeToken("n1"), nil, []string{"not a DNS name"}},
		"short key":    {"n1", a.nodeToken("n1"), func(r *pb.RegisterNodeRequest) { r.WireguardKey = r.WireguardKey[1:] }, []string{"31 bytes"}},
		"empty key":    {"n1", a.nodeToken("n1"), func(r *pb.RegisterNodeRequest) { r.WireguardKey = make([]byte, 32) }, []string{"empty"}},
		"bad endpoint": {"n1", a.nodeToken("n1"), func(r *pb.RegisterNodeRequest) { r.WireguardEndpoint = "x" }, []string{"not address:port"}},
		"bad underlay": {"n1", a.nodeToken("n1"), func(r *pb.RegisterNodeRequest) { r.UnderlayAddresses = [][]byte{{1}} }, []string{"underlay"}},
	} {
		t.Run(name, func(t *testing.T) {
			req := nodeRequest(c.node, c.tok, csr)
			if c.edit != nil {
				c.edit(req)
			}
			_, err := conn.RegisterNode(t.Context(), req)
			wantRefusal(t, err, c.want...)
		})
	}
}

// The answer to a registration got lost: the same key may ask again.
func TestNodeComesAgainAfterACrash(t *testing.T) {
	a := startRig(t, "aws", 1)
	dir, tok := t.TempDir(), a.nodeToken("n1")
	for i := range 2 {
		leaf, err := certs.NewLeaf(dir, certs.Node("aws", "n1"), nil)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := leaf.CSR()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.dial(nil).RegisterNode(t.Context(), nodeRequest("n1", tok, csr)); err != nil {
			t.Fatalf("try %d: %v", i+1, err)
		}
	}
	other, err := newLeaf(t, certs.Node("aws", "n1")).CSR()
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.dial(nil).RegisterNode(t.Context(), nodeRequest("n1", tok, other))
	wantRefusal(t, err, "good for once")
}

func TestRenew(t *testing.T) {
	a := startRig(t, "aws", 1)
	for name, leaf := range map[string]*certs.Leaf{
		"in time": a.leaf(certs.Node("aws", "n1"), time.Hour),
		"late":    expiredLeaf(t, a.ca, certs.Node("aws", "n1")),
	} {
		conn := a.dial(leaf)
		renew := func(ctx context.Context, csr []byte) ([]byte, []byte, error) {
			answer, err := conn.Renew(ctx, &pb.RenewRequest{Csr: csr})
			if err != nil {
				return nil, nil, err
			}
			return answer.Chain, answer.Bundle, nil
		}
		before := leaf.Expires()
		if err := leaf.Renew(t.Context(), renew); err != nil || !leaf.Valid() || !leaf.Expires().After(before) {
			t.Errorf("%s: %v, expires %v", name, err, leaf.Expires())
		}
		if string(leaf.Bundle()) != string(a.ca.Bundle()) {
			t.Errorf("%s: no bundle", name)
		}
		if _, err := a.dial(leaf).RegisterEndpoint(t.Context(), &pb.RegisterEndpointRequest{Namespace: "shop", Name: "p1", Owner: "u", Addresses: [][]byte{{10, 1, 1, 2}}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("after ninety days", func(t *testing.T) {
		leaf := a.leaf(certs.Node("aws", "n1"), time.Hour)
		a.setClock(certs.Grace + 2*time.Hour)
		defer a.setClock(0)
		csr, _ := leaf.CSR()
		_, err := a.dial(leaf).Renew(t.Context(), &pb.RenewRequest{Csr: csr})
		wantRefusal(t, err, "more than 90 days ago", "new node token")
	})
	t.Run("of a node that is gone", func(t *testing.T) {
		a.reg.mu.Lock()
		a.reg.gone = map[string]bool{"n1": true}
		a.reg.mu.Unlock()
		leaf := a.leaf(certs.Node("aws", "n1"), time.Hour)
		csr, _ := leaf.CSR()
		_, err := a.dial(leaf).Renew(t.Context(), &pb.RenewRequest{Csr: csr})
		wantRefusal(t, err, "no node n1")
	})
}

func TestRegisterEndpoint(t *testing.T) {
	a, b := joined(t)
	good := func() *pb.RegisterEndpointRequest {
		return &pb.RegisterEndpointRequest{Namespace: "shop", Name: "p1", Owner: "uid", Addresses: [][]byte{{10, 1, 1, 2}}, Ready: true}
	}
	conn := a.dial(a.leaf(certs.Node("aws", "n1"), time.Hour))
	answer, err := conn.RegisterEndpoint(t.Context(), good())
	if err != nil || clustermesh.Identity(answer.Identity) != clustermesh.MakeIdentity(1, 7) {
		t.Errorf("%v %v", answer, err)
	}
	_, err = a.dial(a.leaf(certs.Node("aws", "n2"), time.Hour)).RegisterEndpoint(t.Context(), good())
	wantRefusal(t, err, "not on n2")
	_, err = a.dial(b.leaf(certs.Node("gcp", "n1"), time.Hour)).RegisterEndpoint(t.Context(), good())
	wantRefusal(t, err, "spiffe://gcp/node/n1 may not call it")
	for name, edit := range map[string]func(*pb.RegisterEndpointRequest){
		"namespace": func(r *pb.RegisterEndpointRequest) { r.Namespace = "a/b" },
		"name":      func(r *pb.RegisterEndpointRequest) { r.Name = "" },
		"owner":     func(r *pb.RegisterEndpointRequest) { r.Owner = "" },
		"addresses": func(r *pb.RegisterEndpointRequest) { r.Addresses = nil },
		"loopback":  func(r *pb.RegisterEndpointRequest) { r.Addresses = [][]byte{{127, 0, 0, 1}} },
		"too many":  func(r *pb.RegisterEndpointRequest) { r.Addresses = make([][]byte, 100) },
	} {
		req := good()
		edit(req)
		if _, err := conn.RegisterEndpoint(t.Context(), req); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			wantRefusal(t, err)
		}
	}
}
