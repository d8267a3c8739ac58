package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
)

// FolderConfig makes a Folder.
type FolderConfig struct {
	Dir string
	// Cache keeps a copy of each file's last good content, so that a file that
	// is broken when the server starts still says what it said before. Empty =
	// none: such a file then says nothing.
	Cache string
	Log   *slog.Logger
	// Rescan is how often the whole tree is looked at, in case the kernel told
	// nothing of a change (network file systems, targets of links). Default 10 s.
	Rescan time.Duration
	// Settle is how long a change that loses objects is left to finish: a file
	// that was removed, emptied, or is malformed may be in the middle of being
	// written. Default 60 ms. A change that loses nothing is believed at once.
	Settle time.Duration
}

// Folder is a Source: a directory tree of ordinary Kubernetes manifests (.yaml,
// .yml, .json), watched. Names that begin with a dot are not manifests, but a
// link of such a name that is swapped (as a mounted ConfigMap does) is noticed.
// Where two files hold one object the first by path wins.
type Folder struct {
	cfg FolderConfig
	log *slog.Logger

	files   map[string]*manifest   // by path below Dir
	holders map[Ref][]string       // paths, sorted: the first one wins
	current map[Ref]runtime.Object // as delivered
	settled map[string]time.Time   // paths whose loss is believed from then on
	root    *Problem               // the folder itself cannot be read
	watch   *fsnotify.Watcher
	watched map[string]bool // directories
	copies  *fileCopies
}

// manifest is one file, as last read and as last good.
type manifest struct {
	stamp   stamp
	docs    []document
	failed  error // of the last reading; docs are older then
	noCopy  bool  // failed before it was ever good, and no copy is known
	refs    map[Ref]runtime.Object
	doubled []Ref // within the file
}

// NewFolder makes a Folder; nothing is read before Run.
func NewFolder(cfg FolderConfig) *Folder {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rescan <= 0 {
		cfg.Rescan = 10 * time.Second
	}
	if cfg.Settle <= 0 {
		cfg.Settle = 60 * time.Millisecond
	}
	return &Folder{
		cfg: cfg, log: cfg.Log,
		files:   make(map[string]*manifest),
		holders: make(map[Ref][]string),
		current: make(map[Ref]runtime.Object),
		settled: make(map[string]time.Time),
		watched: make(map[string]bool),
	}
}

// Run implements Source. It returns an error only if the folder cannot be read
// at the start; one that vanishes later keeps its last content in force.
func (f *Folder) Run(ctx context.Context, deliver func(Objects)) error {
	if info, err := os.Stat(f.cfg.Dir); err != nil || !info.IsDir() {
		return fmt.Errorf("manifest folder %s: %w; create it, or give another with --manifests", f.cfg.Dir, errors.Join(err, notFolder(info)))
	}
	// With room for what a burst of writes tells, drain takes it in one go.
	watch, err := fsnotify.NewBufferedWatcher(1024)
	if err != nil {
		return fmt.Errorf("watch manifest folder: %w; raise fs.inotify.max_user_instances", err)
	}
	defer watch.Close()
	f.watch = watch
	f.copies = newFileCopies(f.cfg.Cache, f.log)
	defer f.copies.close()

	at := time.Now()
	f.read(at, f.scan(true), nil)
	deliver(Objects{Complete: true, Upserts: maps.Clone(f.current), Problems: f.problems(), At: at})
	return f.loop(ctx, deliver)
}

func notFolder(info os.FileInfo) error {
	if info == nil || info.IsDir() {
		return nil
	}
	return errors.New("is not a folder")
}

func (f *Folder) loop(ctx context.Context, deliver func(Objects)) error {
	rescan := time.NewTicker(f.cfg.Rescan)
	defer rescan.Stop()
	settle := time.NewTimer(time.Hour)
	defer settle.Stop()
	before := f.problems()
	for {
		dirty := make(map[string]bool)
		select {
		case <-ctx.Done():
			return nil
		case e := <-f.watch.Events:
			f.event(e, dirty)
		case err := <-f.watch.Errors:
			f.log.Info("manifest folder: events were lost, reading the whole tree again", "err", err)
			dirty = f.scan(false)
		case <-rescan.C:
			dirty = f.scan(false)
		case <-settle.C:
		}
		f.drain(dirty)
		at := time.Now()
		change := Objects{Upserts: make(map[Ref]runtime.Object), At: at}
		for path, due := range f.settled {
			if !due.After(at) {
				dirty[path] = true
			}
		}
		f.read(at, dirty, &change)
		change.Problems = f.problems()
		if len(change.Upserts)+len(change.Deletes) > 0 || !slices.Equal(before, change.Problems) {
			before = change.Problems
			deliver(f.wholeIfLossy(change))
		}
		f.armSettle(settle, at)
	}
}

// wholeIfLossy makes a complete list of a change that takes away more than half
// of many objects: a folder that was unmounted looks like one that was emptied,
// so whoever publishes it must be able to ask for a second opinion.
func (f *Folder) wholeIfLossy(change Objects) Objects {
	if n := len(change.Deletes); n <= 10 || n <= len(f.current) {
		return change
	}
	change.Complete, change.Upserts, change.Deletes = true, maps.Clone(f.current), nil
	return change
}

// drain takes what else is pending, so that many changes make one delivery.
func (f *Folder) drain(dirty map[string]bool) {
	for range 10_000 {
		select {
		case e := <-f.watch.Events:
			f.event(e, dirty)
		default:
			return
		}
	}
}

func (f *Folder) armSettle(t *time.Timer, now time.Time) {
	t.Stop()
	next := time.Hour
	for _, due := range f.settled {
		next = min(next, max(due.Sub(now), time.Millisecond))
	}
	t.Reset(next)
}

// event notes which files an event of the kernel is about.
func (f *Folder) event(e fsnotify.Event, dirty map[string]bool) {
	rel, err := filepath.Rel(f.cfg.Dir, e.Name)
	if err != nil {
		return
	}
	if f.files[rel] != nil || isManifest(rel) {
		if info, err := os.Stat(e.Name); err != nil || !info.IsDir() {
			dirty[rel] = true
			return
		}
	}
	// A folder, or a link under a dot name: whatever lies below may have changed.
	if e.Op&^fsnotify.Chmod != 0 && !f.aside(e.Name) {
		maps.Copy(dirty, f.scan(false))
	}
}

// aside: a file that is no manifest and stands for nothing else. Most are the
// temporary names under which files are written before they are renamed.
func (f *Folder) aside(path string) bool {
	info, err := os.Lstat(path)
	if err != nil { // a folder or link that is gone was watched, or was a dot name
		return !f.watched[path] && !strings.HasPrefix(filepath.Base(path), ".")
	}
	return info.Mode().IsRegular()
}

// isManifest judges by the name alone.
func isManifest(rel string) bool {
	for part := range strings.SplitSeq(rel, string(filepath.Separator)) {
		if strings.HasPrefix(part, ".") {
			return false
		}
	}
	switch filepath.Ext(rel) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// read reads the dirty files and adds what that changes to change (nil: the
// first reading, nothing is compared).
func (f *Folder) read(at time.Time, dirty map[string]bool, change *Objects) {
	affected := make(map[Ref]bool)
	for _, path := range slices.Sorted(maps.Keys(dirty)) {
		for _, ref := range f.readFile(path, at, change == nil) {
			affected[ref] = true
		}
	}
	for ref := range affected {
		f.resolve(ref, change)
	}
}

// resolve finds who holds ref now and notes the difference to what was delivered.
func (f *Folder) resolve(ref Ref, change *Objects) {
	paths := f.holders[ref]
	old, had := f.current[ref]
	if len(paths) == 0 {
		if had {
			delete(f.current, ref)
			if change != nil {
				change.Deletes = append(change.Deletes, ref)
			}
		}
		return
	}
	obj := f.files[paths[0]].refs[ref]
	if had && (old == obj || equality.Semantic.DeepEqual(old, obj)) {
		return
	}
	f.current[ref] = obj
	if change != nil {
		change.Upserts[ref] = obj
	}
}

// problems are all present ones, sorted by file.
func (f *Folder) problems() []Problem {
	var ps []Problem
	if f.root != nil {
		ps = append(ps, *f.root)
	}
	for path, m := range f.files {
		ps = m.problems(path, ps)
	}
	for ref, paths := range f.holders {
		if len(paths) > 1 {
			ps = append(ps, Problem{
				Object: "file " + paths[1],
				What:   ref.String() + " is in " + paths[0] + " too",
				Why:    "one object can have one definition; the first file by name wins",
				Fix:    "remove it from one of the two",
			})
		}
	}
	sortProblems(ps)
	return ps
}

func (m *manifest) problems(path string, ps []Problem) []Problem {
	if m.failed != nil {
		p := Problem{
			Object: "file " + path,
			What:   "not read",
			Why:    printable(m.failed.Error()),
			Fix:    "correct the file; until then what it said before stays in force",
		}
		if m.noCopy {
			p.Fix = "correct the file; no earlier content of it is known"
		}
		ps = append(ps, p)
	}
	for _, d := range m.docs {
		for _, w := range d.warnings {
			ps = append(ps, Problem{
				Object: "file " + path, What: fmt.Sprintf("line %d: a field is not known and has no effect", d.line),
				Why: printable(w), Fix: "check its spelling",
			})
		}
	}
	for _, ref := range m.doubled {
		ps = append(ps, Problem{
			Object: "file " + path, What: ref.String() + " is in it twice",
			Why: "one object can have one definition; the first wins", Fix: "remove one of the two",
		})
	}
	return ps
}
