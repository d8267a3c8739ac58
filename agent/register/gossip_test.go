package register

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// The keys of the gossip come with a registration, are told of before the next one
// names them, and are there after a restart with no server in reach. A server that
// hands none out takes none away.
func TestGossipKeys(t *testing.T) {
	dir := t.TempDir()
	s := newServer(t, "here")
	old, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	hand := func(again time.Duration, keys ...[]byte) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.gossip, s.again = keys, again
	}
	hand(time.Second, old)
	c := open(t, dir, s.token(t, "node-1"))
	if err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	told := make(chan Facts, 16)
	c.cfg.Changed = func(f Facts) { told <- f }
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	hand(time.Second, old, fresh)
	if f := <-told; len(f.GossipKeys) != 2 || !bytes.Equal(f.GossipKeys[1], fresh) {
		t.Errorf("told of %d keys", len(f.GossipKeys))
	}
	want := Facts{GossipKeys: [][]byte{old, fresh}}.gossipKeyIDs()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if slices.ContainsFunc(s.calls(), func(r *pb.RegisterNodeRequest) bool { return slices.Equal(r.GossipKeys, want) }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the node does not say that it took the step")
		}
	}
	stop()
	<-done
	hand(0)
	if err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.grpc.Stop()
	again := open(t, dir, "")
	if f, ok := again.Facts(); !ok || len(f.GossipKeys) != 2 || !bytes.Equal(f.GossipKeys[0], old) {
		t.Errorf("after a restart: %d keys", len(f.GossipKeys))
	}
	if st, err := os.Stat(filepath.Join(dir, "cluster.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file with the keys: %v %v", st, err)
	}
}

// A key that is none is refused whole: what was good stays.
func TestBadGossipKey(t *testing.T) {
	s := newServer(t, "here")
	s.gossip = [][]byte{bytes.Repeat([]byte{1}, 32)}
	c := open(t, t.TempDir(), s.token(t, "node-1"))
	if err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.gossip = [][]byte{{1, 2, 3}}
	s.mu.Unlock()
	if err := c.Register(t.Context()); err == nil {
		t.Error("a key of three bytes was taken")
	}
	if f, _ := c.Facts(); len(f.GossipKeys) != 1 || len(f.GossipKeys[0]) != 32 {
		t.Error("the good key is gone")
	}
}
