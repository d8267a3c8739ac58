package apiserver

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
)

// maxManifest bounds one file.
const maxManifest = 256 << 20

// stamp tells one content of a file from another without reading it.
type stamp struct {
	mtime      time.Time
	size       int64
	dev, inode uint64
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{mtime: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.inode = uint64(sys.Dev), sys.Ino
	}
	return s
}

// scan walks the tree, watches new folders, and names the files whose stamp is
// not the one last read. If the folder itself cannot be read nothing is said to
// have changed: silence is not deletion.
func (f *Folder) scan(first bool) map[string]bool {
	dirty := make(map[string]bool)
	seen := make(map[string]bool)
	if err := f.walk("", seen, dirty, 0); err != nil {
		f.root = &Problem{
			Object: "folder " + f.cfg.Dir, What: "cannot be read", Why: printable(err.Error()),
			Fix: "bring it back; until then what it held stays in force",
		}
		delete(f.watched, f.cfg.Dir)
		return nil
	}
	f.root = nil
	if !first {
		for path := range f.files {
			if !seen[path] {
				dirty[path] = true
			}
		}
	}
	return dirty
}

// walk looks at one folder below Dir. It follows links, to the depth of any
// sensible tree, so a link in a circle ends.
func (f *Folder) walk(rel string, seen, dirty map[string]bool, depth int) error {
	dir := filepath.Join(f.cfg.Dir, rel)
	if !f.watched[dir] {
		// Watch first, list second: nothing can slip in between.
		if err := f.watch.Add(dir); err != nil {
			return err
		}
		f.watched[dir] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		delete(f.watched, dir)
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		sub := filepath.Join(rel, e.Name())
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		switch {
		case err != nil:
			continue // vanished meanwhile, or a link to nowhere
		case info.IsDir() && depth < 16:
			// A subfolder that cannot be read keeps its files in force.
			if err := f.walk(sub, seen, dirty, depth+1); err != nil && !errors.Is(err, fs.ErrNotExist) {
				for path := range f.files {
					if strings.HasPrefix(path, sub+string(filepath.Separator)) {
						seen[path] = true
					}
				}
			}
		case info.Mode().IsRegular() && isManifest(sub):
			seen[sub] = true
			if m := f.files[sub]; m == nil || m.stamp != stampOf(info) {
				dirty[sub] = true
			}
		}
	}
	return nil
}

// readFile brings one file up to date and returns the objects it may affect.
// While a loss has not settled the former content stays.
func (f *Folder) readFile(path string, at time.Time, first bool) []Ref {
	m := f.files[path]
	text, st, err := readManifest(filepath.Join(f.cfg.Dir, path))
	due, waiting := f.settled[path]
	settled := first || (waiting && !due.After(at))
	wait := func() {
		if !waiting {
			f.settled[path] = at.Add(f.cfg.Settle)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		if m == nil {
			delete(f.settled, path)
			return nil
		}
		if !settled {
			wait()
			return nil
		}
		delete(f.settled, path)
		f.copies.remove(path)
		return f.install(path, nil)
	}
	var old []document
	if m != nil {
		old = m.docs
	}
	var docs []document
	if err == nil {
		docs, err = decodeManifest(text, old)
	}
	if !settled && (err != nil || loses(m, docs)) && (m == nil || len(m.docs) > 0 || err != nil) {
		// An unfinished write changes again; each change starts the wait anew.
		if !waiting || m == nil || m.stamp != st {
			f.settled[path] = at.Add(f.cfg.Settle)
		}
		if m != nil {
			m.stamp = st
		}
		return nil
	}
	delete(f.settled, path)
	if err != nil {
		return f.fail(path, m, st, err)
	}
	f.copies.keep(path, text)
	return f.install(path, newManifest(st, docs))
}

// fail notes that a file cannot be read; its last good content stays, from the
// copy if it was never good in this process.
func (f *Folder) fail(path string, m *manifest, st stamp, err error) []Ref {
	if m != nil {
		m.failed, m.stamp = err, st
		return nil
	}
	docs, noCopy := []document(nil), true
	if text, ok := f.copies.load(path); ok {
		if kept, copyErr := decodeManifest(text, nil); copyErr == nil {
			docs, noCopy = kept, false
		}
	}
	m = newManifest(st, docs)
	m.failed, m.noCopy = err, noCopy
	return f.install(path, m)
}

// loses: does docs lack an object that m holds?
func loses(m *manifest, docs []document) bool {
	if m == nil {
		return false
	}
	n := 0
	for _, d := range docs {
		for _, o := range d.objects {
			if _, had := m.refs[o.ref]; had {
				n++
			}
		}
	}
	return n < len(m.refs)
}

func newManifest(st stamp, docs []document) *manifest {
	m := &manifest{stamp: st, docs: docs, refs: make(map[Ref]runtime.Object)}
	for _, d := range docs {
		for _, o := range d.objects {
			if _, twice := m.refs[o.ref]; twice {
				m.doubled = append(m.doubled, o.ref)
				continue
			}
			m.refs[o.ref] = o.obj
		}
	}
	return m
}

// install puts m (nil: the file is gone) in place of what path held.
func (f *Folder) install(path string, m *manifest) []Ref {
	affected := make(map[Ref]bool)
	if old := f.files[path]; old != nil {
		for ref := range old.refs {
			affected[ref] = true
			holders := slices.DeleteFunc(slices.Clone(f.holders[ref]), func(p string) bool { return p == path })
			if len(holders) == 0 {
				delete(f.holders, ref)
			} else {
				f.holders[ref] = holders
			}
		}
	}
	delete(f.files, path)
	if m != nil {
		f.files[path] = m
		for ref := range m.refs {
			affected[ref] = true
			holders := append(slices.Clone(f.holders[ref]), path)
			slices.Sort(holders)
			f.holders[ref] = holders
		}
		for _, d := range m.docs {
			for _, note := range d.notes {
				f.log.Info(printable(note), "file", path, "line", d.line)
			}
		}
	}
	return slices.Collect(maps.Keys(affected))
}

// readManifest reads a file whole; the stamp is taken before the content, so a
// change in between is seen as one later.
func readManifest(path string) ([]byte, stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, stamp{}, err
	}
	if info.Size() > maxManifest {
		return nil, stampOf(info), errors.New("larger than 256 MiB; split it")
	}
	text, err := os.ReadFile(path)
	return text, stampOf(info), err
}

// printable escapes control characters of foreign text, which may reach a terminal.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}
