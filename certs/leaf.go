package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// SignFunc gets a request (DER) signed. It answers with the chain and, if it
// knows, the present bundle of the own cluster (PEM, may be nil).
type SignFunc func(ctx context.Context, csrDER []byte) (chain, bundle []byte, err error)

// Leaf is a certificate with its key that can be replaced while connections
// use it. It lives in one file, so that key and certificate always fit. All
// methods are safe for concurrent use.
type Leaf struct {
	name Name
	file string // "" = not kept
	log  *slog.Logger
	now  func() time.Time

	current atomic.Pointer[tls.Certificate] // nil until the first Install

	mu      sync.Mutex
	pending *ecdsa.PrivateKey // key of the request that is under way
	bundle  []byte
	changed func()
}

// NewLeaf opens the leaf kept in dir (made with mode 0700), which may still be
// without a certificate. dir = "" keeps it in memory only. A file that cannot
// be used is put aside as leaf.pem.bad and reported in the log: a new
// certificate can be had, a lost start cannot.
func NewLeaf(dir string, name Name, log *slog.Logger) (*Leaf, error) {
	if err := name.Check(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &Leaf{name: name, log: log, now: time.Now}
	if dir == "" {
		return l, nil
	}
	if err := privateDir(dir); err != nil {
		return nil, fmt.Errorf("directory of the certificate: %w", err)
	}
	l.file = filepath.Join(dir, "leaf.pem")
	text, err := os.ReadFile(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	if err := l.restore(text); err != nil {
		log.Error("certificate file cannot be used and was put aside", "file", l.file, "err", err, "fix", "a new certificate is asked for; a node may need a new node token")
		if err := os.Rename(l.file, l.file+".bad"); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *Leaf) restore(text []byte) error {
	key, err := findKey(text)
	if err != nil {
		return err
	}
	cert, err := pair(onlyCerts(text), key, l.name)
	if err != nil {
		return err
	}
	l.current.Store(cert)
	return nil
}

// pair makes a certificate ready for use, after checks that it is ours.
func pair(chainPEM []byte, key crypto.Signer, want Name) (*tls.Certificate, error) {
	chain, err := ParseBundle(chainPEM)
	if err != nil {
		return nil, err
	}
	name, err := FromCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	if name != want {
		return nil, fmt.Errorf("the certificate is for %s, expected %s", name, want)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// Name is whom the leaf speaks for.
func (l *Leaf) Name() Name { return l.name }

// Certificate returns the present certificate; nil if there is none yet.
func (l *Leaf) Certificate() *tls.Certificate { return l.current.Load() }

// Expires is the end of the present certificate; zero if there is none.
func (l *Leaf) Expires() time.Time {
	if c := l.current.Load(); c != nil {
		return c.Leaf.NotAfter
	}
	return time.Time{}
}

// Valid reports whether there is a certificate that holds at this moment.
func (l *Leaf) Valid() bool {
	c := l.current.Load()
	return c != nil && !l.now().Before(c.Leaf.NotBefore) && !l.now().After(c.Leaf.NotAfter)
}

// Bundle is the own cluster's bundle that came with the last certificate of
// this process (PEM); nil if none came.
func (l *Leaf) Bundle() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bundle
}

// OnChange calls f after each Install, in the goroutine that called it and
// before it returns; f may use the leaf.
func (l *Leaf) OnChange(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = f
}

// CSR makes a request (DER) with a key of its own; the certificate in use is
// not touched. Each request has a fresh key, except that a key whose request
// was not answered is asked for again, also after a restart: so the signer can
// tell a second try from a stranger.
func (l *Leaf) CSR() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending == nil {
		key, err := l.pendingKey()
		if err != nil {
			return nil, fmt.Errorf("key for a certificate of %s: %w", l.name, err)
		}
		l.pending = key
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, l.pending)
}

func (l *Leaf) pendingFile() string { return l.file + ".request" }

// pendingKey reads the key of an unanswered request, or makes one and keeps it.
func (l *Leaf) pendingKey() (*ecdsa.PrivateKey, error) {
	if l.file == "" {
		return newKey()
	}
	if text, err := os.ReadFile(l.pendingFile()); err == nil {
		if key, err := findKey(text); err == nil {
			if key, ok := key.(*ecdsa.PrivateKey); ok {
				return key, nil
			}
		}
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, WriteFile(l.pendingFile(), pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), 0o600)
}

// Install puts the answer to the last CSR into use, after it is on disk.
// bundle may be nil.
func (l *Leaf) Install(chainPEM, bundle []byte) error {
	changed, err := l.install(chainPEM, bundle)
	if err == nil && changed != nil {
		changed()
	}
	return err
}

func (l *Leaf) install(chainPEM, bundle []byte) (changed func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending == nil {
		return nil, errors.New("no certificate request is under way")
	}
	cert, err := pair(chainPEM, l.pending, l.name)
	if err != nil {
		return nil, fmt.Errorf("answer to the certificate request: %w", err)
	}
	if l.file != "" {
		if err := l.write(cert); err != nil {
			return nil, fmt.Errorf("certificate of %s: %w", l.name, err)
		}
		if err := os.Remove(l.pendingFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("certificate of %s: %w", l.name, err)
		}
	}
	if bundle != nil {
		l.bundle = bytes.Clone(bundle)
	}
	l.pending = nil
	l.current.Store(cert)
	return l.changed, nil
}

func (l *Leaf) write(cert *tls.Certificate) error {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})
	for _, raw := range cert.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: raw})...)
	}
	return WriteFile(l.file, text, 0o600)
}

// Renew asks for a certificate once and puts it into use.
func (l *Leaf) Renew(ctx context.Context, sign SignFunc) error {
	csr, err := l.CSR()
	if err != nil {
		return err
	}
	chain, bundle, err := sign(ctx, csr)
	if err != nil {
		return err
	}
	return l.Install(chain, bundle)
}

const (
	retryFirst = time.Second
	retryMost  = 5 * time.Minute
	renewLimit = 30 * time.Second // for one attempt
)

// Run renews the certificate at half of its life, and retries with growing
// pauses, until ctx ends. Everything goes on while it fails; what is lost at
// the certificate's end are new control connections only.
func (l *Leaf) Run(ctx context.Context, sign SignFunc) error {
	for {
		if !sleep(ctx, l.untilRenewal()) {
			return ctx.Err()
		}
		for pause := retryFirst; ; pause = min(pause*2, retryMost) {
			attempt, cancel := context.WithTimeout(ctx, renewLimit)
			err := l.Renew(attempt, sign)
			cancel()
			if err == nil {
				l.log.Info("certificate renewed", "name", l.name.String(), "expires", l.Expires().UTC())
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.log.Warn("certificate not renewed", "name", l.name.String(), "expires", l.Expires().UTC(), "err", err, "retry", pause)
			if !sleep(ctx, pause/2+mrand.N(pause/2+1)) {
				return ctx.Err()
			}
		}
	}
}

// untilRenewal is the time to half-life, give or take a tenth so that nodes
// that were started together do not renew together.
func (l *Leaf) untilRenewal() time.Duration {
	c := l.current.Load()
	if c == nil {
		return 0
	}
	begin := c.Leaf.NotBefore.Add(Skew) // undoes the dating back
	life := c.Leaf.NotAfter.Sub(begin)
	at := begin.Add(life/2 - life/20 + mrand.N(max(life/10, 1)))
	// Never a tight loop, however short the life is.
	return max(at.Sub(l.now()), min(retryFirst, life/4))
}

// sleep reports whether d went by before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
