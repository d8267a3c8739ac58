package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// fileCopies keeps the last good content of each manifest, written aside by a
// goroutine of its own: nothing waits for it. A crash leaves the copy before.
//
// The goroutine takes its time: a file that is replaced makes the disk write at
// once, and a copy of each change at that moment would stand in the way of the
// very commit that publishes the change.
type fileCopies struct {
	dir     string // empty: nothing is kept
	log     *slog.Logger
	mu      sync.Mutex
	pending map[string][]byte // by path; nil: remove
	wake    chan struct{}
	stop    chan struct{}
	done    chan struct{}
}

// manifestCopyDelay is how long changes are gathered before they are copied.
const manifestCopyDelay = time.Second

func newFileCopies(dir string, log *slog.Logger) *fileCopies {
	c := &fileCopies{dir: dir, log: log, pending: make(map[string][]byte), wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	if dir == "" {
		close(c.done)
		return c
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		log.Warn("no copies of manifests are kept", "err", err)
		c.dir = ""
		close(c.done)
		return c
	}
	go c.run()
	return c
}

func (c *fileCopies) path(manifest string) string {
	sum := sha256.Sum256([]byte(manifest))
	return filepath.Join(c.dir, hex.EncodeToString(sum[:16]))
}

// load is the copy of a manifest, if there is one.
func (c *fileCopies) load(manifest string) ([]byte, bool) {
	if c.dir == "" {
		return nil, false
	}
	text, err := os.ReadFile(c.path(manifest))
	return text, err == nil
}

func (c *fileCopies) keep(manifest string, text []byte) { c.put(manifest, append([]byte{}, text...)) }
func (c *fileCopies) remove(manifest string)            { c.put(manifest, nil) }

func (c *fileCopies) put(manifest string, text []byte) {
	if c.dir == "" {
		return
	}
	c.mu.Lock()
	c.pending[manifest] = text
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// close writes what is pending and ends the goroutine.
func (c *fileCopies) close() {
	if c.dir != "" {
		close(c.stop)
	}
	<-c.done
}

func (c *fileCopies) run() {
	defer close(c.done)
	for {
		select {
		case <-c.wake:
		case <-c.stop:
			c.flush()
			return
		}
		select {
		case <-time.After(manifestCopyDelay):
		case <-c.stop: // what is pending is written all the same
		}
		c.flush()
	}
}

func (c *fileCopies) flush() {
	c.mu.Lock()
	work := c.pending
	c.pending = make(map[string][]byte)
	c.mu.Unlock()
	for manifest, text := range work {
		path := c.path(manifest)
		if text == nil {
			os.Remove(path)
			continue
		}
		// A name of its own, then a rename: a reader sees one whole copy.
		tmp := path + ".new"
		err := os.WriteFile(tmp, text, 0o600)
		if err == nil {
			err = os.Rename(tmp, path)
		}
		if err != nil {
			c.log.Warn("the copy of a manifest was not kept", "file", manifest, "err", err)
		}
	}
}
