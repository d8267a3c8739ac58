package apiserver

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// admin serves the admin socket of a rig and connects to it.
func (r *meshRig) admin() pb.AdminClient {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "run", "admin.sock")
	l, err := ListenAdmin(path)
	if err != nil {
		r.t.Fatal(err)
	}
	a := NewAdmin(AdminConfig{
		Port: r.port, Store: r.store,
		Status: func(_ context.Context, s *pb.StatusResponse) error {
			s.Leader, s.Keys = true, int64(r.store.Len())
			return nil
		},
		Problems: func() []Problem { return []Problem{{Object: "x", What: "y", Why: "z", Fix: "w"}} },
		Confirm:  func(kind string) int { return len(kind) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, l) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		if _, err := os.Stat(path); err == nil {
			r.t.Error("the socket is left behind")
		}
	})
	cc, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cc.Close() })
	return pb.NewAdminClient(cc)
}

func TestAdminCalls(t *testing.T) {
	a, b := startRig(t, "aws", 1), startRig(t, "gcp", 2)
	adminA, adminB, ctx := a.admin(), b.admin(), t.Context()
	inv, err := adminA.Invite(ctx, &pb.InviteRequest{TtlSeconds: 60})
	if err != nil || inv.Cluster != "aws" || inv.Address != a.addr || inv.Fingerprint != a.ca.Fingerprint() {
		t.Fatalf("%v %v", inv, err)
	}
	if _, err := adminA.Invite(ctx, &pb.InviteRequest{TtlSeconds: -1}); err == nil {
		t.Error("a token without a life")
	}
	dry, err := adminB.JoinMesh(ctx, &pb.JoinMeshRequest{Token: inv.Token, DryRun: true})
	if err != nil || len(dry.Checks) == 0 {
		t.Fatalf("%v %v", dry, err)
	}
	res, err := adminB.JoinMesh(ctx, &pb.JoinMeshRequest{Token: inv.Token})
	if err != nil || res.Cluster != "aws" || res.Fingerprint != a.ca.Fingerprint() || res.OwnFingerprint != b.ca.Fingerprint() {
		t.Fatalf("%v %v", res, err)
	}
	_, err = adminA.JoinMesh(ctx, &pb.JoinMeshRequest{Token: inv.Token})
	wantRefusal(t, err, "from cluster aws itself")
	waitUntil(t, "aws lists gcp as reachable", func() bool {
		l, err := adminA.ListPeers(ctx, &pb.ListPeersRequest{})
		return err == nil && len(l.Peers) == 1 && l.Peers[0].Peer.Name == "gcp" && l.Peers[0].Reachable
	})
	st, err := adminA.Status(ctx, &pb.StatusRequest{})
	if err != nil || st.Cluster.Name != "aws" || !st.Leader || st.Keys == 0 || st.CertificateExpires == 0 || len(st.Peers) != 1 ||
		len(st.Problems) != 1 || st.Problems[0].Fix != "w" {
		t.Errorf("%v %v", st, err)
	}
	tok, err := adminA.NodeToken(ctx, &pb.NodeTokenRequest{Node: "n1"})
	if err != nil || !strings.HasPrefix(tok.Token, "tombolo-node-") {
		t.Errorf("%v %v", tok, err)
	}
	_, err = adminA.NodeToken(ctx, &pb.NodeTokenRequest{Node: "N 1"})
	wantRefusal(t, err, "not a DNS name")
	if c, err := adminA.ConfirmDeletes(ctx, &pb.ConfirmDeletesRequest{Kind: "node"}); err != nil || c.Released != 4 {
		t.Errorf("%v %v", c, err)
	}
	dump, err := adminA.Dump(ctx, &pb.DumpRequest{Prefix: "/tombolo/v1/"})
	if err != nil || !strings.Contains(dump.Text, "/local/aws/peer/gcp ") || !strings.Contains(dump.Text, "private/aws/token/") || strings.Contains(dump.Text, "hash") {
		t.Errorf("%v\n%s", err, dump.GetText())
	}
	if narrow, err := adminA.Dump(ctx, &pb.DumpRequest{Prefix: "export/"}); err != nil || strings.Contains(narrow.Text, "/local/") || narrow.Text == "" {
		t.Errorf("%v\n%s", err, narrow.GetText())
	}
	rm, err := adminA.RemovePeer(ctx, &pb.RemovePeerRequest{Cluster: "gcp"})
	if err != nil || !rm.Told {
		t.Errorf("%v %v", rm, err)
	}
	if left, err := adminB.LeaveMesh(ctx, &pb.LeaveMeshRequest{}); err != nil || len(left.Left) != 0 {
		t.Errorf("%v %v", left, err)
	}
}

func TestNothingPrivateInTheStore(t *testing.T) {
	a := startRig(t, "aws", 1)
	tok, err := a.port.Invite(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.store.List(t.Context(), clustermesh.Root, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			if strings.Contains(string(kv.Value), string(tok.Secret)) {
				t.Errorf("%s holds the secret", kv.Key)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAdminSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 20))
	path := filepath.Join(dir, "s")
	l, err := ListenAdmin(path)
	if err != nil {
		t.Fatal(err)
	}
	for p, mode := range map[string]os.FileMode{dir: 0o700, path: 0o600} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", p, info.Mode(), err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files in %s", len(entries), dir)
	}
	if _, err := ListenAdmin(path); err == nil || !strings.Contains(err.Error(), "another mesh API server is running on it") {
		t.Errorf("taken: %v", err)
	}
	l.Close()
	// What a process that was killed leaves behind.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if l, err = ListenAdmin(path); err != nil {
		t.Fatalf("stale: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenAdmin(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenAdmin(filepath.Join(dir, "t")); err == nil || !strings.Contains(err.Error(), "written by others") {
		t.Errorf("open directory: %v", err)
	}
	if _, err := ListenAdmin("/tmp/" + strings.Repeat("x", 200)); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("long: %v", err)
	}
}
