package apiserver

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// folderRig runs a Folder and keeps what it says.
type folderRig struct {
	t     *testing.T
	dir   string
	cache string
	stop  func()

	mu       sync.Mutex
	objects  map[Ref]runtime.Object
	problems []Problem
	gone     []Ref // every delete there ever was
	lists    int
}

func startFolder(t *testing.T, dir, cache string, settle time.Duration) *folderRig {
	t.Helper()
	r := &folderRig{t: t, dir: dir, cache: cache, objects: make(map[Ref]runtime.Object)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	f := NewFolder(FolderConfig{Dir: dir, Cache: cache, Settle: settle, Rescan: 200 * time.Millisecond})
	go func() { done <- f.Run(ctx, r.take) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	eventually(t, "a first list", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.lists > 0 })
	return r
}

func (r *folderRig) take(o Objects) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.Complete {
		r.objects = make(map[Ref]runtime.Object)
		r.lists++
	}
	maps.Copy(r.objects, o.Upserts)
	for _, ref := range o.Deletes {
		delete(r.objects, ref)
		r.gone = append(r.gone, ref)
	}
	r.problems = o.Problems
}

// text is every service with its first port.
func (r *folderRig) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for ref, obj := range r.objects {
		if svc, ok := obj.(*corev1.Service); ok {
			lines = append(lines, fmt.Sprintf("%s:%d", ref.Name, svc.Spec.Ports[0].Port))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

func (r *folderRig) expect(want string) {
	r.t.Helper()
	eventually(r.t, "services "+want, func() bool { return r.text() == want })
}

func (r *folderRig) problem(text string) {
	r.t.Helper()
	eventually(r.t, "problem "+text, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if text == "" {
			return len(r.problems) == 0
		}
		return slices.ContainsFunc(r.problems, func(p Problem) bool { return strings.Contains(p.Text(), text) })
	})
}

func (r *folderRig) deletes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.gone)
}

func svcYAML(name string, port int) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {ports: [{port: %d}]}\n", name, port)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func TestFolderChanges(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", svcYAML("a", 1))
	write(t, dir+"/notes.txt", "not a manifest")
	write(t, dir+"/.hidden.yaml", svcYAML("hidden", 1))
	r := startFolder(t, dir, "", 5*time.Millisecond)
	r.expect("a:1")

	write(t, dir+"/a.yaml", svcYAML("a", 2)) // in place
	r.expect("a:2")
	write(t, dir+"/.a.new", svcYAML("a", 3)) // aside, then renamed
	rename(t, dir+"/.a.new", dir+"/a.yaml")
	r.expect("a:3")
	write(t, dir+"/deep/er/b.yml", svcYAML("b", 1)+"---\n"+svcYAML("c", 1)) // new subfolders
	r.expect("a:3 b:1 c:1")
	write(t, dir+"/deep/er/b.yml", svcYAML("b", 2))
	r.expect("a:3 b:2")
	if err := os.RemoveAll(dir + "/deep"); err != nil {
		t.Fatal(err)
	}
	r.expect("a:3")
	r.problem("")
}

// A mounted ConfigMap: the files are links through ..data, which is swapped.
func TestFolderSymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/..v1/a.yaml", svcYAML("a", 1))
	write(t, dir+"/..v2/a.yaml", svcYAML("a", 2))
	for _, link := range [][2]string{{"..v1", "..data"}, {"..data/a.yaml", "a.yaml"}, {"..v2", "..new"}} {
		if err := os.Symlink(link[0], dir+"/"+link[1]); err != nil {
			t.Fatal(err)
		}
	}
	r := startFolder(t, dir, "", 5*time.Millisecond)
	r.expect("a:1")
	rename(t, dir+"/..new", dir+"/..data")
	r.expect("a:2")
}

// A file that is emptied and written again, or moved, loses nothing in between.
func TestFolderUnfinishedWrites(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", svcYAML("a", 1)+"---\n"+svcYAML("b", 1))
	r := startFolder(t, dir, "", 300*time.Millisecond)
	r.expect("a:1 b:1")
	for i := range 20 {
		text := svcYAML("a", i+2) + "---\n" + svcYAML("b", i+2)
		f, err := os.Create(dir + "/a.yaml") // truncates
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{text[:30], text[30:90], text[90:]} {
			if _, err := f.WriteString(part); err != nil {
				t.Fatal(err)
			}
			f.Sync()
		}
		f.Close()
		r.expect(fmt.Sprintf("a:%d b:%d", i+2, i+2))
	}
	rename(t, dir+"/a.yaml", dir+"/z.yaml")
	write(t, dir+"/z.yaml", svcYAML("a", 50)+"---\n"+svcYAML("b", 50))
	r.expect("a:50 b:50")
	r.problem("")
	if n := r.deletes(); n > 0 {
		t.Errorf("%d objects were deleted on the way", n)
	}
}

func TestFolderMalformed(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	write(t, dir+"/a.yaml", svcYAML("a", 1)+"---\n"+svcYAML("b", 1))
	r := startFolder(t, dir, cache, 5*time.Millisecond)
	r.expect("a:1 b:1")
	write(t, dir+"/a.yaml", svcYAML("a", 2)+"---\nkind: [\n")
	r.problem("file a.yaml: not read: document 2, line")
	r.expect("a:1 b:1")

	// Restarted while the file is broken.
	r.stop()
	r = startFolder(t, dir, cache, 5*time.Millisecond)
	r.problem("file a.yaml: not read: document 2, line")
	r.expect("a:1 b:1")
	write(t, dir+"/c.yaml", "kind: Service\x1b[2J\n")
	r.problem("file c.yaml: not read")
	for _, p := range r.problems {
		if strings.ContainsRune(p.Text(), '\x1b') {
			t.Errorf("a control character reaches the terminal: %q", p.Text())
		}
	}
	write(t, dir+"/a.yaml", svcYAML("a", 3))
	r.expect("a:3")
	if err := os.Remove(dir + "/c.yaml"); err != nil {
		t.Fatal(err)
	}
	r.problem("")
}

// Silence is not deletion: a folder that cannot be read keeps what it held.
func TestFolderVanishes(t *testing.T) {
	dir := t.TempDir() + "/m"
	write(t, dir+"/a.yaml", svcYAML("a", 1))
	r := startFolder(t, dir, "", 5*time.Millisecond)
	r.expect("a:1")
	rename(t, dir, dir+".away")
	r.problem("cannot be read")
	r.expect("a:1")
	rename(t, dir+".away", dir)
	r.problem("")
	r.expect("a:1")
	write(t, dir+"/a.yaml", svcYAML("a", 2))
	r.expect("a:2")
}

func TestSplitDocuments(t *testing.T) {
	for _, c := range []struct {
		text  string
		lines []int
	}{
		{"", nil},
		{"# only a comment\n", nil},
		{"a: 1", []int{1}},
		{"---\na: 1\n---\n---\nb: 2\n", []int{2, 5}},
		{"# head\n---\r\na: 1\r\n--- # second\nb: 2", []int{3, 5}},
		{"text: |\n  --- not a separator\n", []int{1}},
	} {
		var lines []int
		for _, p := range splitDocuments([]byte(c.text)) {
			lines = append(lines, p.line)
		}
		if !slices.Equal(lines, c.lines) {
			t.Errorf("%q: documents at lines %v, expected %v", c.text, lines, c.lines)
		}
	}
}
