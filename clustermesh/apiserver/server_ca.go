package apiserver

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
)

// openCA opens the CA where it is kept.
func (s *server) openCA(ctx context.Context) (ca *certs.CA, err error) {
	if s.cfg.CAKeeper != nil {
		s.caKept = &keptCA{server: s, keeper: s.cfg.CAKeeper}
		return s.caKept.open(ctx)
	}
	s.caFiles = newCAFiles(s.cfg)
	return s.caFiles.load(time.Now())
}

func (s *server) followCA(ctx context.Context) {
	if s.caKept != nil {
		s.caKept.follow(ctx)
		return
	}
	s.followCAFiles(ctx)
}

// caFiles are the files that the CA is read from.
type caFiles struct {
	cluster         string
	own             string // directory of the CA that was made here; "" = supplied
	cert, key, root string
	seen            [sha256.Size]byte // of their content when it was last taken or refused
}

// caLook is how often the files are looked at.
const caLook = 5 * time.Second

func newCAFiles(cfg Config) *caFiles {
	f := &caFiles{cluster: cfg.Cluster, cert: cfg.CACert, key: cfg.CAKey, root: cfg.CARoots}
	if f.cert == "" && f.key == "" {
		f.own = filepath.Join(cfg.StateDir, "ca")
		f.cert = filepath.Join(f.own, "ca.pem") // holds both
		f.key = f.cert
	}
	return f
}

// load reads the files; at first start it makes the CA.
func (f *caFiles) load(now time.Time) (*certs.CA, error) {
	sum := f.sum()
	var roots []string
	if f.root != "" {
		roots = []string{f.root}
	}
	if f.own != "" {
		ca, err := certs.OpenCA(f.own, f.cluster, now)
		if err != nil || roots == nil {
			f.seen = f.sum()
			return ca, err
		}
	}
	ca, err := certs.LoadCA(f.cluster, now, f.cert, f.key, roots...)
	f.seen = sum
	return ca, err
}

// sum is over the content: files are replaced by links as well as written to.
func (f *caFiles) sum() (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, name := range []string{f.cert, f.key, f.root} {
		text, err := os.ReadFile(name)
		one := sha256.Sum256(text)
		if err != nil {
			one = [sha256.Size]byte{} // no file at present
		}
		h.Write(one[:])
	}
	h.Sum(sum[:0])
	return sum
}

// followCAFiles takes the files over when they change, until ctx ends. What
// cannot be used changes nothing and is a problem.
func (s *server) followCAFiles(ctx context.Context) {
	look := time.NewTicker(caLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if s.caFiles.sum() == s.caFiles.seen {
				continue
			}
		case <-s.cfg.Reload:
		}
		s.reloadCA(ctx)
	}
}

func (s *server) reloadCA(ctx context.Context) {
	if _, err := os.Stat(s.caFiles.cert); err != nil {
		s.caProblem(err) // never make a CA while one is in use
		return
	}
	ca, err := s.caFiles.load(time.Now())
	if err == nil {
		err = s.port.ReplaceCA(ctx, ca)
	}
	s.caProblem(err)
	if err == nil {
		s.core.announceAnew()
	}
}

func (s *server) caProblem(err error) {
	if err == nil {
		s.problems.Set("ca", nil)
		return
	}
	var path *os.PathError
	fix := "correct the files; they are read again when they change, and on SIGHUP"
	if errors.As(err, &path) {
		fix = "put the file back, or correct its permissions"
	}
	s.problems.Set("ca", []Problem{{
		Object: "CA of cluster " + s.cfg.Cluster, What: "its files changed and are not used; the CA from before stays in force", Why: printable(err.Error()), Fix: fix,
	}})
}
