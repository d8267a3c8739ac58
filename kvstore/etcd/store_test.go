package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

func TestRealEtcd(t *testing.T) {
	e := startEtcd(t, newCA(t), "", "")
	s := open(t, e.config("tester"))
	t.Run("commit, list, watch", func(t *testing.T) {
		w := watch(t, s, "/a/", kvstore.Position{}).standing()
		p1 := put(t, s, "/a/1", "x")
		p2 := commit(t, s, kvstore.Put("/a/2", []byte("y"), 0), kvstore.Put("/b", []byte("z"), 0), kvstore.Delete("/a/1"))
		kvs, pos := list(t, s, "/a/", kvstore.Position{})
		wantKeys(t, kvs, "/a/2")
		if pos != p2 {
			t.Fatalf("list at %v, want %v", pos, p2)
		}
		old, pos := list(t, s, "/a/", p1)
		wantKeys(t, old, "/a/1")
		if pos != p1 {
			t.Fatalf("list at %v, want %v", pos, p1)
		}
		b1, b2 := w.next(), w.next()
		if b1.Position != p1 || len(b1.Events) != 1 || b2.Position != p2 || len(b2.Events) != 2 {
			t.Fatalf("watched %v, %v", b1, b2)
		}
	})
	t.Run("conditions", func(t *testing.T) {
		_, err := s.Commit(t.Context(), kvstore.IfModRevision("/a/2", 0), kvstore.Put("/c", nil, 0))
		wantErr(t, err, kvstore.ErrConflict)
		commit(t, s, kvstore.IfModRevision("/c", 0), kvstore.IfCreateRevision("/c", 0), kvstore.Put("/c", nil, 0))
	})
	t.Run("limits", func(t *testing.T) {
		var ops []kvstore.Op
		for i := range kvstore.MaxOps {
			ops = append(ops, kvstore.Put(fmt.Sprint("/many/", i), nil, 0))
		}
		commit(t, s, ops...)
		_, err := s.Commit(t.Context(), append(ops, kvstore.Put("/many/x", nil, 0))...)
		wantErr(t, err, kvstore.ErrTooLarge)
		_, err = s.Commit(t.Context(), kvstore.Put("/big", make([]byte, kvstore.MaxValue+1), 0))
		wantErr(t, err, kvstore.ErrTooLarge)
		for i := range ops {
			ops[i] = kvstore.Put(fmt.Sprint("/many/", i), make([]byte, kvstore.MaxValue), 0)
		}
		_, err = s.Commit(t.Context(), ops[:40]...) // 2.5 MiB: beyond etcd's limit, its gRPC layer's included
		wantErr(t, err, kvstore.ErrTooLarge)
		_, err = s.Commit(t.Context(), ops[:26]...) // 1.6 MiB: beyond etcd's limit alone
		wantErr(t, err, kvstore.ErrTooLarge)
	})
	t.Run("leases", func(t *testing.T) {
		l, err := s.Grant(t.Context(), 1500*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, kvstore.Put("/lease", nil, l.ID()))
		left, err := l.KeepAlive(t.Context())
		if err != nil || left != 2*time.Second {
			t.Fatalf("renewed for %v: %v", left, err)
		}
		if err := l.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = l.KeepAlive(t.Context())
		wantErr(t, err, kvstore.ErrLeaseNotFound)
		wantErr(t, l.Revoke(t.Context()), kvstore.ErrLeaseNotFound)
		_, err = s.Commit(t.Context(), kvstore.Put("/lease", nil, l.ID()))
		wantErr(t, err, kvstore.ErrLeaseNotFound)
		kvs, _ := list(t, s, "/lease", kvstore.Position{})
		wantKeys(t, kvs)
	})
	t.Run("compaction", func(t *testing.T) {
		p1 := put(t, s, "/a/3", "x")
		p2 := put(t, s, "/a/3", "y")
		put(t, s, "/a/3", "z")
		if _, err := s.Client().Compact(t.Context(), p2.Revision+1); err != nil {
			t.Fatal(err)
		}
		_, _, err := tryList(s, "/a/", p1)
		wantErr(t, err, kvstore.ErrCompacted)
		wantErr(t, watch(t, s, "/a/", p1).end(), kvstore.ErrCompacted)
	})
	t.Run("future", func(t *testing.T) {
		p := put(t, s, "/a/4", "x")
		p.Revision += 10
		_, _, err := tryList(s, "/a/", p)
		wantErr(t, err, kvstore.ErrFutureRevision)
		wantErr(t, watch(t, s, "/a/", p).end(), kvstore.ErrFutureRevision)
	})
	t.Run("zstd is not there", func(t *testing.T) {
		cfg := e.config("tester")
		cfg.Compress = true
		z := open(t, cfg)
		watch(t, z, "/a/", kvstore.Position{}).standing()
		kvs, _ := list(t, z, "/a/", kvstore.Position{})
		wantKeys(t, kvs, "/a/2", "/a/3", "/a/4")
	})
}

// A watch hands over large revisions whole though etcd sends them in fragments.
func TestFragments(t *testing.T) {
	e := startEtcd(t, newCA(t), "", "")
	s := open(t, e.config("tester"))
	start := put(t, s, "/f", "")
	for range 4 {
		var ops []kvstore.Op
		for i := range 20 {
			ops = append(ops, kvstore.Put(fmt.Sprintf("/f/%d", i), make([]byte, 60<<10), 0))
		}
		commit(t, s, ops...)
	}
	w := watch(t, s, "/f/", start).standing()
	for n := 0; n < 80; {
		b := w.next()
		per := map[int64]int{}
		for _, ev := range b.Events {
			per[ev.KV.ModRevision]++
		}
		for rev, k := range per {
			if k != 20 {
				t.Fatalf("%d of 20 events of revision %d at once", k, rev)
			}
		}
		n += len(b.Events)
	}
}

func TestSwappedEtcd(t *testing.T) {
	c := newCA(t)
	e := startEtcd(t, c, "", "")
	s := open(t, e.config("tester"))
	var pos kvstore.Position
	for range 5 {
		pos = put(t, s, "/a", "old")
	}
	e.Close()
	other := startEtcd(t, c, "", e.addr)
	o := open(t, other.config("tester"))
	for range 20 {
		put(t, o, "/a", "new")
	}
	retry(t, func() error {
		_, _, err := tryList(s, "/", pos)
		return err
	}, kvstore.ErrOtherStore)
	wantErr(t, watch(t, s, "/", pos).end(), kvstore.ErrOtherStore)
	wantErr(t, watch(t, s, "/", kvstore.Position{StoreID: pos.StoreID}).end(), kvstore.ErrOtherStore)
}

// retry waits until op stops failing with transport errors and wants its error.
func retry(t *testing.T, op func() error, want error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := op()
		if errors.Is(err, want) || time.Now().After(deadline) {
			wantErr(t, err, want)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestRestoredBackup(t *testing.T) {
	c := newCA(t)
	e := startEtcd(t, c, "", "")
	s := open(t, e.config("tester"))
	put(t, s, "/a", "1")
	e.Close()
	backup := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(e.dir)); err != nil {
		t.Fatal(err)
	}
	e = startEtcd(t, c, e.dir, e.addr)
	s = open(t, e.config("tester"))
	var pos kvstore.Position
	for range 5 {
		pos = put(t, s, "/a", "2")
	}
	e.Close()
	restored := startEtcd(t, c, backup, "")
	s = open(t, restored.config("tester"))
	_, _, err := tryList(s, "/", pos)
	wantErr(t, err, kvstore.ErrFutureRevision)
	wantErr(t, watch(t, s, "/", pos).end(), kvstore.ErrFutureRevision)
	_, now := list(t, s, "/", kvstore.Position{})
	if now.StoreID != pos.StoreID || now.Revision >= pos.Revision {
		t.Fatalf("the restored store is at %v, the original was at %v", now, pos)
	}
}

func TestUnreachable(t *testing.T) {
	c := newCA(t)
	addr := freeAddr(t)
	s := open(t, etcd.Config{Endpoints: []string{addr}, TLS: c.client("tester")})
	_, _, err := tryList(s, "/", kvstore.Position{})
	if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "connection refused") {
		t.Fatalf("error %v names neither endpoint nor reason", err)
	}
	if err := watch(t, s, "/", kvstore.Position{}).end(); err == nil {
		t.Fatal("a watch on nothing did not fail")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = s.Commit(ctx, kvstore.Put("/a", nil, 0))
	wantErr(t, err, context.Canceled)

	// The store works once the server is there.
	mem := kvstore.NewMemory(kvstore.MemoryOptions{})
	put(t, mem, "/a", "1")
	serve(t, c, addr, mem, everything)
	retry(t, func() error {
		_, _, err := tryList(s, "/", kvstore.Position{})
		if err == nil {
			return errReached
		}
		return err
	}, errReached)
}

var errReached = errors.New("reached")

func TestOpenRefuses(t *testing.T) {
	c := newCA(t).client("tester")
	for _, tc := range []struct {
		cfg  etcd.Config
		want string
	}{
		{etcd.Config{}, "no endpoints"},
		{etcd.Config{Endpoints: []string{"host"}, TLS: c}, "host:port"},
		{etcd.Config{Endpoints: []string{"host:0"}, TLS: c}, "port"},
		{etcd.Config{Endpoints: []string{"ftp://host:1"}, TLS: c}, "unknown scheme"},
		{etcd.Config{Endpoints: []string{"host:1"}}, "needs TLS"},
		{etcd.Config{Endpoints: []string{"http://host:1"}, TLS: c}, "without TLS"},
		{etcd.Config{Endpoints: []string{"https://host:1"}}, "needs TLS"},
	} {
		_, err := etcd.Open(t.Context(), tc.cfg)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("endpoints %q: %v, want %q", tc.cfg.Endpoints, err, tc.want)
		}
	}
}
