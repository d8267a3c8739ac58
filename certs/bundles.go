package certs

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// maxChain bounds what one peer can make us verify: leaf, intermediates, root.
	maxChain = 5
	// maxChainBytes is the most that all certificates of a chain may take.
	maxChainBytes = 32 << 10
	// Grace is how long after its end a node's certificate may still be used to
	// ask for a new one.
	Grace = 90 * 24 * time.Hour
)

// ErrUnknownCluster: the certificate claims a cluster that has no bundle here.
var ErrUnknownCluster = errors.New("its cluster is not joined with this one, so there is no CA bundle to verify it")

// ErrExpired: the certificate was good, and its time is over.
var ErrExpired = errors.New("certificate expired")

// ErrNotYetValid: the certificate's time has not begun: one of the clocks is wrong.
var ErrNotYetValid = errors.New("certificate not valid yet")

// ErrOtherCA: the chain does not lead to the CA it should.
var ErrOtherCA = errors.New("another CA")

// Bundles holds the trust anchors of each cluster. It is safe for concurrent use.
type Bundles struct {
	mu       sync.Mutex
	clusters map[string]*bundle
	watchers []func(cluster string)
}

type bundle struct {
	text  []byte
	certs []*x509.Certificate
	pool  *x509.CertPool
}

// NewBundles returns one without any cluster: it trusts nobody.
func NewBundles() *Bundles { return &Bundles{clusters: make(map[string]*bundle)} }

// OnChange calls f, from the goroutine that made the change, after a cluster's
// bundle was replaced or deleted. Whoever keeps connections open verifies them
// again then: certificates are otherwise looked at during the handshake only.
func (b *Bundles) OnChange(f func(cluster string)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watchers = append(b.watchers, f)
}

// Set replaces the trust anchors of a cluster by those in text (PEM). A bundle
// that cannot be used changes nothing.
func (b *Bundles) Set(cluster string, text []byte) error {
	if err := CheckCluster(cluster); err != nil {
		return err
	}
	n, err := newBundle(text)
	if err != nil {
		return fmt.Errorf("CA bundle of cluster %s: %w", cluster, err)
	}
	b.mu.Lock()
	old := b.clusters[cluster]
	if old != nil && bytes.Equal(old.text, n.text) {
		b.mu.Unlock()
		return nil
	}
	b.clusters[cluster] = n
	b.mu.Unlock()
	b.changed(cluster)
	return nil
}

func newBundle(text []byte) (*bundle, error) {
	certs, err := ParseBundle(text)
	if err != nil {
		return nil, err
	}
	n := &bundle{text: bytes.Clone(text), certs: certs, pool: x509.NewCertPool()}
	for _, c := range certs {
		if !c.IsCA {
			return nil, fmt.Errorf("certificate %s is not a CA", quote(c.Subject.String()))
		}
		n.pool.AddCert(c)
	}
	return n, nil
}

// Delete forgets a cluster: nothing verifies as a name of it any more.
func (b *Bundles) Delete(cluster string) {
	b.mu.Lock()
	_, had := b.clusters[cluster]
	delete(b.clusters, cluster)
	b.mu.Unlock()
	if had {
		b.changed(cluster)
	}
}

func (b *Bundles) changed(cluster string) {
	b.mu.Lock()
	watchers := slices.Clone(b.watchers)
	b.mu.Unlock()
	for _, f := range watchers {
		f(cluster)
	}
}

// Get returns a cluster's bundle (PEM); nil if there is none.
func (b *Bundles) Get(cluster string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.clusters[cluster]; n != nil {
		return bytes.Clone(n.text)
	}
	return nil
}

// Clusters lists the clusters that have a bundle, sorted.
func (b *Bundles) Clusters() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for c := range b.clusters {
		out = append(out, c)
	}
	slices.Sort(out)
	return out
}

// Verify says whose certificate the chain (DER, leaf first) begins with. The
// name in the leaf decides which cluster's bundle it is verified against, and
// no other bundle counts.
func (b *Bundles) Verify(rawCerts [][]byte, now time.Time) (Name, error) {
	leaf, rest, name, err := parseChain(rawCerts)
	if err != nil {
		return Name{}, err
	}
	b.mu.Lock()
	n := b.clusters[name.Cluster]
	b.mu.Unlock()
	if n == nil {
		return Name{}, fmt.Errorf("certificate of %s: %w", name, ErrUnknownCluster)
	}
	return name, verify(leaf, rest, name, n.pool, now)
}

// VerifyGrace is Verify, except that a node's certificate which expired less
// than Grace ago passes, with expired = true. It is for requests of a new
// certificate only.
func (b *Bundles) VerifyGrace(rawCerts [][]byte, now time.Time) (name Name, expired bool, err error) {
	name, err = b.Verify(rawCerts, now)
	if err == nil || !errors.Is(err, ErrExpired) || name.Kind != KindNode {
		return name, false, err
	}
	leaf, parseErr := x509.ParseCertificate(rawCerts[0])
	if parseErr != nil {
		return name, false, parseErr
	}
	if now.After(leaf.NotAfter.Add(Grace)) {
		return name, false, fmt.Errorf("%w, more than %d days ago; register the node with a new node token", err, int(Grace.Hours()/24))
	}
	// Everything else about it must still hold: judged at its last good second.
	name, err = b.Verify(rawCerts, leaf.NotAfter)
	return name, err == nil, err
}

// VerifyWith verifies a chain against the bundle in text, as that of the
// cluster the leaf names. It is for clusters that are just being introduced.
func VerifyWith(text []byte, rawCerts [][]byte, now time.Time) (Name, error) {
	n, err := newBundle(text)
	if err != nil {
		return Name{}, fmt.Errorf("CA bundle: %w", err)
	}
	leaf, rest, name, err := parseChain(rawCerts)
	if err != nil {
		return Name{}, err
	}
	return name, verify(leaf, rest, name, n.pool, now)
}

// VerifyPinned verifies a chain against the one certificate in it (or its
// leaf's issuer) that has the fingerprint, and returns that certificate.
func VerifyPinned(fingerprint string, rawCerts [][]byte, now time.Time) (Name, *x509.Certificate, error) {
	leaf, rest, name, err := parseChain(rawCerts)
	if err != nil {
		return Name{}, nil, err
	}
	for _, c := range rest {
		if Fingerprint(c) != fingerprint {
			continue
		}
		if !c.IsCA {
			return Name{}, nil, fmt.Errorf("the certificate with fingerprint %s is not a CA", fingerprint)
		}
		pool := x509.NewCertPool()
		pool.AddCert(c)
		return name, c, verify(leaf, rest, name, pool, now)
	}
	var got string
	if len(rest) > 0 {
		got = Fingerprint(rest[len(rest)-1])
	}
	return Name{}, nil, fmt.Errorf("%w: certificate of %s leads to the CA with fingerprint %s, expected %s; something else answers at that address, or its CA was replaced",
		ErrOtherCA, name, got, fingerprint)
}

// ChainName reads the name that a chain claims, unverified: to find out by what
// to verify it.
func ChainName(rawCerts [][]byte) (Name, error) {
	_, _, name, err := parseChain(rawCerts)
	return name, err
}

// parseChain reads a chain within bounds.
func parseChain(rawCerts [][]byte) (leaf *x509.Certificate, rest []*x509.Certificate, name Name, err error) {
	if len(rawCerts) == 0 {
		return nil, nil, Name{}, errors.New("no certificate was sent")
	}
	if len(rawCerts) > maxChain {
		return nil, nil, Name{}, fmt.Errorf("a chain of %d certificates, at most %d are allowed", len(rawCerts), maxChain)
	}
	total := 0
	for _, raw := range rawCerts {
		total += len(raw)
	}
	if total > maxChainBytes {
		return nil, nil, Name{}, fmt.Errorf("a chain of %d bytes, at most %d are allowed", total, maxChainBytes)
	}
	for i, raw := range rawCerts {
		c, err := x509.ParseCertificate(raw)
		if err != nil {
			return nil, nil, Name{}, fmt.Errorf("certificate %d of the chain: %w", i+1, err)
		}
		if i == 0 {
			leaf = c
		} else {
			rest = append(rest, c)
		}
	}
	name, err = FromCertificate(leaf)
	return leaf, rest, name, err
}

// verify checks a parsed chain. The name it stands for has been read already,
// and stays known to the caller when only the time is wrong.
func verify(leaf *x509.Certificate, rest []*x509.Certificate, name Name, roots *x509.CertPool, now time.Time) error {
	if leaf.IsCA {
		return fmt.Errorf("certificate of %s is that of a CA, expected a leaf", name)
	}
	inter := x509.NewCertPool()
	for _, c := range rest {
		if hasConstraints(c) {
			// Their evaluation is costly, and no CA of ours has any.
			return fmt.Errorf("certificate of %s: an intermediate has name constraints, which are not supported", name)
		}
		inter.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: inter,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err == nil {
		return nil
	}
	when := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("certificate of %s: %w on %s (it is %s here); renew it, or set the clock that is wrong", name, ErrExpired, when(leaf.NotAfter), when(now))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("certificate of %s: %w: it is valid only from %s, and the clock here says %s; set the clock that is wrong",
			name, ErrNotYetValid, when(leaf.NotBefore), when(now))
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("certificate of %s: %w: it was not signed by a CA of cluster %s known here; if that CA was replaced, remove the cluster and join again",
			name, ErrOtherCA, name.Cluster)
	}
	return fmt.Errorf("certificate of %s: %w", name, err)
}

func hasConstraints(c *x509.Certificate) bool {
	return len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains)+len(c.PermittedIPRanges)+len(c.ExcludedIPRanges)+
		len(c.PermittedEmailAddresses)+len(c.ExcludedEmailAddresses)+len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) > 0
}

// SharedRoot returns a trust anchor that stands in both bundles, or nil. Two
// clusters that share one could sign each other's names.
func SharedRoot(a, b []byte) *x509.Certificate {
	as, err := ParseBundle(a)
	if err != nil {
		return nil
	}
	bs, err := ParseBundle(b)
	if err != nil {
		return nil
	}
	for _, x := range as {
		for _, y := range bs {
			if bytes.Equal(x.RawSubjectPublicKeyInfo, y.RawSubjectPublicKeyInfo) {
				return x
			}
		}
	}
	return nil
}
