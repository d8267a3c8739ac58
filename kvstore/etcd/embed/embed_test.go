package embed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("EMBED_TEST_HOLD"); dir != "" {
		holdDir(dir)
		return
	}
	goleak.VerifyTestMain(m,
		// Started by etcd's packages when they are first used, for the life of the process.
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

func start(t *testing.T, dir string) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := Start(ctx, Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func commit(t *testing.T, s kvstore.Store, ops ...kvstore.Op) kvstore.Position {
	t.Helper()
	pos, err := s.Commit(t.Context(), ops...)
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func list(t *testing.T, s kvstore.Store, prefix string, at kvstore.Position) ([]kvstore.KV, kvstore.Position) {
	t.Helper()
	var all []kvstore.KV
	pos, err := s.List(t.Context(), prefix, at, func(kvs []kvstore.KV) error { all = append(all, kvs...); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return all, pos
}

func TestKeepsItsDataAndItsID(t *testing.T) {
	dir := t.TempDir()
	began := time.Now()
	s := start(t, dir)
	t.Logf("first start took %v", time.Since(began))
	pos := commit(t, s.Store(), kvstore.Put("/a", []byte("1"), 0))
	if pos.StoreID == 0 {
		t.Fatal("no store ID")
	}
	began = time.Now()
	s.Close()
	t.Logf("close took %v", time.Since(began))

	began = time.Now()
	again := start(t, dir)
	t.Logf("second start took %v", time.Since(began))
	kvs, now := list(t, again.Store(), "/", kvstore.Position{})
	if len(kvs) != 1 || string(kvs[0].Value) != "1" || now != pos {
		t.Fatalf("after a restart: %v at %v, want one key at %v", kvs, now, pos)
	}
}

func TestWipedDirectoryIsAnotherStore(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	pos := commit(t, s.Store(), kvstore.Put("/a", []byte("1"), 0))
	s.Close()
	if err := os.RemoveAll(filepath.Join(dir, "etcd")); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir)
	_, err := s.Store().List(t.Context(), "/", pos, func([]kvstore.KV) error { return nil })
	if !errors.Is(err, kvstore.ErrOtherStore) && !errors.Is(err, kvstore.ErrFutureRevision) {
		t.Fatalf("list at the old position: %v", err)
	}
	if _, now := list(t, s.Store(), "/", kvstore.Position{}); now.StoreID == pos.StoreID {
		t.Fatal("a wiped directory came back under the same ID")
	}
}

func TestStreamsLongLists(t *testing.T) {
	s := start(t, t.TempDir())
	var last kvstore.Position
	value := []byte(strings.Repeat("v", 2000))
	for i := range 20 {
		var ops []kvstore.Op
		for j := range 100 {
			ops = append(ops, kvstore.Put(fmt.Sprintf("/k/%02d/%02d", i, j), value, 0))
		}
		last = commit(t, s.Store(), ops...)
	}
	chunks := 0
	n := 0
	pos, err := s.Store().List(t.Context(), "/k/", kvstore.Position{}, func(kvs []kvstore.KV) error {
		chunks++
		n += len(kvs)
		return nil
	})
	if err != nil || n != 2000 || pos != last {
		t.Fatalf("%d keys at %v (want %v): %v", n, pos, last, err)
	}
	if chunks < 3 {
		t.Fatalf("%d chunks: the list was not streamed", chunks)
	}
	stop := errors.New("enough")
	if _, err := s.Store().List(t.Context(), "/k/", kvstore.Position{}, func([]kvstore.KV) error { return stop }); err != stop {
		t.Fatalf("visit's error came back as %v", err)
	}
}

func TestCloseEndsWatches(t *testing.T) {
	s := start(t, t.TempDir())
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		var last error
		first := true
		for _, err := range s.Store().Watch(context.Background(), "/", kvstore.Position{}) {
			if first {
				close(ready)
				first = false
			}
			last = err
		}
		ended <- last
	}()
	<-ready
	s.Close()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Fatalf("watch ended with %v", err)
	}
	if _, err := s.Store().Commit(t.Context(), kvstore.Put("/a", nil, 0)); err == nil {
		t.Fatal("a stopped store took a commit")
	}
}

// holdDir is what the second process of TestLockedByAnotherProcess does.
func holdDir(dir string) {
	s, err := Start(context.Background(), Config{Dir: dir})
	if err != nil {
		fmt.Println("ERROR", err)
		return
	}
	defer s.Close()
	fmt.Println("HELD")
	os.Stdin.Read(make([]byte, 1)) //nolint:errcheck // ends when the test closes it
}

func TestLockedByAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "EMBED_TEST_HOLD="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // it ends when in is closed
	defer in.Close()
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil || !strings.HasPrefix(string(line[:n]), "HELD") {
		t.Fatalf("the other process said %q, %v", line[:n], err)
	}
	began := time.Now()
	_, err = Start(t.Context(), Config{Dir: dir})
	if !errors.Is(err, ErrLocked) || time.Since(began) > 2*time.Second {
		t.Fatalf("start in a locked directory, after %v: %v", time.Since(began), err)
	}
}

func TestDamagedDirectory(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	commit(t, s.Store(), kvstore.Put("/a", []byte("1"), 0))
	s.Close()
	t.Run("database", func(t *testing.T) {
		damaged := t.TempDir()
		if err := os.CopyFS(damaged, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		db := filepath.Join(damaged, "etcd", "member", "snap", "db")
		overwrite(t, db, 0, 64<<10)
		_, err := Start(t.Context(), Config{Dir: damaged})
		wantHint(t, err, "move the directory away")
	})
	t.Run("log", func(t *testing.T) {
		damaged := t.TempDir()
		if err := os.CopyFS(damaged, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(damaged, "etcd", "member", "wal", "0*.wal"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no log files: %v", err)
		}
		overwrite(t, files[0], 40, 400)
		_, err = Start(t.Context(), Config{Dir: damaged})
		wantHint(t, err, "move the directory away")
	})
}

func overwrite(t *testing.T, path string, off int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("\xde\xad", n/2)), off); err != nil {
		t.Fatal(err)
	}
}

func wantHint(t *testing.T, err error, hint string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), hint) {
		t.Fatalf("error %v does not say %q", err, hint)
	}
	t.Log(err)
}

// A directory that a newer etcd has written is refused, not converted.
func TestNewerDirectory(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	commit(t, s.Store(), kvstore.Put("/a", []byte("1"), 0))
	s.Close()
	for bucket, key := range map[string]string{"cluster": "clusterVersion", "meta": "storageVersion"} {
		t.Run(key, func(t *testing.T) {
			newer := t.TempDir()
			if err := os.CopyFS(newer, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			db, err := bolt.Open(filepath.Join(newer, "etcd", "member", "snap", "db"), 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bolt.Tx) error {
				b := tx.Bucket([]byte(bucket))
				t.Logf("%s was %q", key, b.Get([]byte(key)))
				return b.Put([]byte(key), []byte("3.8.0"))
			})
			if cerr := db.Close(); err != nil || cerr != nil {
				t.Fatal(err, cerr)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err = Start(ctx, Config{Dir: newer})
			wantHint(t, err, "newer version")
		})
	}
}
