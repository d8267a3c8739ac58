package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// Skew is how far two clocks may differ: certificates are dated back by it.
	Skew = 5 * time.Minute
	// DefaultTTL is how long a leaf lives unless the operator says otherwise.
	DefaultTTL = 24 * time.Hour

	caTTL = 10 * 365 * 24 * time.Hour
)

// CA signs the leaves of one cluster. It is immutable.
type CA struct {
	cluster string
	key     crypto.Signer
	cert    *x509.Certificate   // whose key is key
	chain   []*x509.Certificate // cert and what stands between it and root; empty if cert is the root
	root    *x509.Certificate   // the trust anchor that cert chains to
	bundle  []*x509.Certificate // all trust anchors, root first
}

// OpenCA reads the CA in dir, and makes one if dir has none. A CA of another
// cluster, a key that does not fit or an expired CA is an error: nothing is
// ever replaced.
func OpenCA(dir, cluster string, now time.Time) (*CA, error) {
	if err := CheckCluster(cluster); err != nil {
		return nil, err
	}
	if err := privateDir(dir); err != nil {
		return nil, fmt.Errorf("directory of the CA: %w", err)
	}
	// Key and certificate are one file: written in one step, they always fit.
	path := filepath.Join(dir, "ca.pem")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = newCA(cluster, now); err == nil {
			err = WriteFile(path, text, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("CA of cluster %s: %w", cluster, err)
	}
	ca, err := parseCA(text, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from a backup, or move it away to make a new CA (every node and peer must then join again)", path, err)
	}
	if got := ca.cert.Subject.CommonName; got != caName(cluster) {
		return nil, fmt.Errorf("%s: belongs to %s, not to cluster %s; use the state directory of this cluster", path, quote(got), cluster)
	}
	ca.cluster = cluster
	return ca, ca.check(now)
}

// LoadCA takes a CA from files: certFile holds the certificate whose key is in
// keyFile, followed by the intermediates above it and, if it is at hand, the
// root. rootFiles add further trust anchors (roots to come or to go).
func LoadCA(cluster string, now time.Time, certFile, keyFile string, rootFiles ...string) (*CA, error) {
	if err := CheckCluster(cluster); err != nil {
		return nil, err
	}
	certText, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	keyText, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	ca, err := parseCA(certText, keyText)
	if err != nil {
		return nil, fmt.Errorf("CA in %s and %s: %w", certFile, keyFile, err)
	}
	for _, file := range rootFiles {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("further roots: %w", err)
		}
		roots, err := ParseBundle(text)
		if err != nil {
			return nil, fmt.Errorf("further roots in %s: %w", file, err)
		}
		if err := ca.addRoots(roots); err != nil {
			return nil, fmt.Errorf("further roots in %s: %w", file, err)
		}
	}
	ca.cluster = cluster
	return ca, ca.check(now)
}

// ParseCA is LoadCA for text: chain is the certificate whose key is in key, and
// what is above it. roots adds further trust anchors; those that have expired by
// now are left out, as whoever keeps them need not know when to forget them.
func ParseCA(cluster string, now time.Time, chain, key []byte, roots ...[]byte) (*CA, error) {
	if err := CheckCluster(cluster); err != nil {
		return nil, err
	}
	ca, err := parseCA(chain, key)
	if err != nil {
		return nil, err
	}
	ca.cluster = cluster
	if err := ca.check(now); err != nil {
		return nil, err
	}
	return ca.WithRoots(now, roots...)
}

// WithRoots is the same CA with further trust anchors, as far as they have not
// expired.
func (ca *CA) WithRoots(now time.Time, roots ...[]byte) (*CA, error) {
	more := *ca
	more.bundle = slices.Clone(ca.bundle)
	for _, text := range roots {
		if len(text) == 0 {
			continue
		}
		parsed, err := ParseBundle(text)
		if err != nil {
			return nil, fmt.Errorf("further roots: %w", err)
		}
		parsed = slices.DeleteFunc(parsed, func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
		if err := more.addRoots(parsed); err != nil {
			return nil, fmt.Errorf("further roots: %w", err)
		}
	}
	return &more, nil
}

// MakeCA is a new CA of a cluster: its certificate and its key, PEM.
func MakeCA(cluster string, now time.Time) (cert, key []byte, err error) {
	if err := CheckCluster(cluster); err != nil {
		return nil, nil, err
	}
	text, err := newCA(cluster, now)
	if err != nil {
		return nil, nil, err
	}
	return SplitCA(text)
}

// SplitCA takes the text of a file that holds certificates and their key apart.
func SplitCA(both []byte) (cert, key []byte, err error) {
	signer, err := findKey(both)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, nil, err
	}
	return onlyCerts(both), pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// ChainWith puts what an issuer hands out beside a certificate into the order that
// is wanted: chain, followed by those of above that sign what stands last. The
// others of above come back as further roots.
func ChainWith(chain, above []byte) (whole, roots []byte, err error) {
	certs, err := ParseBundle(onlyCerts(chain))
	if err != nil {
		return nil, nil, err
	}
	rest, err := ParseBundle(onlyCerts(above))
	if len(bytes.TrimSpace(above)) > 0 && err != nil {
		return nil, nil, err
	}
	rest = slices.DeleteFunc(rest, func(c *x509.Certificate) bool { return slices.ContainsFunc(certs, c.Equal) })
	for last := certs[len(certs)-1]; last.CheckSignatureFrom(last) != nil; last = certs[len(certs)-1] {
		i := slices.IndexFunc(rest, func(up *x509.Certificate) bool { return last.CheckSignatureFrom(up) == nil })
		if i < 0 {
			break
		}
		certs = append(certs, rest[i])
		rest = slices.Delete(rest, i, i+1)
	}
	return encodeCerts(certs...), encodeCerts(rest...), nil
}

func caName(cluster string) string { return "tombolo CA of " + cluster }

func newCA(cluster string, now time.Time) ([]byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: caName(cluster)},
		NotBefore:             now.Add(-Skew),
		NotAfter:              now.Add(caTTL),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: caName(cluster)}}, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: keyDER})...), nil
}

// parseCA puts the certificates of certText and the key of keyText together.
func parseCA(certText, keyText []byte) (*CA, error) {
	key, err := findKey(keyText)
	if err != nil {
		return nil, err
	}
	certs, err := ParseBundle(onlyCerts(certText))
	if err != nil {
		return nil, err
	}
	ca := &CA{key: key, cert: certs[0]}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(ca.cert.PublicKey) {
		return nil, fmt.Errorf("the key is not that of the first certificate (%s)", quote(ca.cert.Subject.String()))
	}
	ca.root = ca.cert
	for _, up := range certs[1:] {
		if err := ca.root.CheckSignatureFrom(up); err != nil {
			return nil, fmt.Errorf("certificate %s is not signed by the next one, %s: put the signing certificate first and each issuer after it",
				quote(ca.root.Subject.String()), quote(up.Subject.String()))
		}
		ca.chain = append(ca.chain, ca.root)
		ca.root = up
	}
	if len(ca.chain) > maxChain-2 {
		return nil, fmt.Errorf("%d intermediates, at most %d are allowed", len(ca.chain), maxChain-2)
	}
	if err := ca.addRoots([]*x509.Certificate{ca.root}); err != nil {
		return nil, err
	}
	return ca, nil
}

func (ca *CA) addRoots(roots []*x509.Certificate) error {
	for _, r := range roots {
		if !r.IsCA {
			return fmt.Errorf("certificate %s is not a CA", quote(r.Subject.String()))
		}
		if !slices.ContainsFunc(ca.bundle, r.Equal) {
			ca.bundle = append(ca.bundle, r)
		}
	}
	return nil
}

// check refuses a CA that cannot sign now.
func (ca *CA) check(now time.Time) error {
	for _, c := range append(ca.chain[:len(ca.chain):len(ca.chain)], ca.cert, ca.root) {
		if !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return fmt.Errorf("certificate %s may not sign certificates; it needs CA:TRUE and keyCertSign", quote(c.Subject.String()))
		}
		if now.After(c.NotAfter) {
			return fmt.Errorf("CA certificate %s expired on %s; supply a new one", quote(c.Subject.String()), c.NotAfter.UTC().Format(time.RFC3339))
		}
		if now.Before(c.NotBefore) {
			return fmt.Errorf("CA certificate %s is valid only from %s, and the clock here says %s; set the clock", quote(c.Subject.String()),
				c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// Cluster is the trust domain the CA signs for.
func (ca *CA) Cluster() string { return ca.cluster }

// Bundle is what others need to verify this cluster: PEM, all trust anchors.
func (ca *CA) Bundle() []byte { return encodeCerts(ca.bundle...) }

// Fingerprint is that of the trust anchor which the leaves chain to now.
func (ca *CA) Fingerprint() string { return Fingerprint(ca.root) }

// RootPEM is the trust anchor that the leaves chain to now.
func (ca *CA) RootPEM() []byte { return encodeCerts(ca.root) }

// SameSigner reports whether both sign by the same certificate and key.
func (ca *CA) SameSigner(other *CA) bool {
	return ca.cert.Equal(other.cert) && ca.root.Equal(other.root)
}

// Same reports whether both are the same signer, with the same trust anchors.
func (ca *CA) Same(other *CA) bool {
	return ca.SameSigner(other) && bytes.Equal(ca.Bundle(), other.Bundle())
}

// Sign answers a certificate request (DER) with a certificate for name, valid
// from a little before now for ttl (0 = DefaultTTL), followed by the
// intermediates: PEM. Of the request only the key is used, after its proof of
// possession was checked; the name is the caller's to decide.
func (ca *CA) Sign(csrDER []byte, name Name, ttl time.Duration, now time.Time) (chainPEM []byte, err error) {
	if err := name.Check(); err != nil {
		return nil, err
	}
	if name.Cluster != ca.cluster {
		return nil, fmt.Errorf("the CA of cluster %s does not sign names of cluster %s", ca.cluster, name.Cluster)
	}
	pub, err := csrKey(csrDER)
	if err != nil {
		return nil, err
	}
	if err := ca.check(now); err != nil {
		return nil, err
	}
	if ttl <= 0 {
		ttl = DefaultTTL
	}
	notAfter := now.Add(ttl)
	for _, c := range append(ca.chain[:len(ca.chain):len(ca.chain)], ca.cert, ca.root) {
		if c.NotAfter.Before(notAfter) {
			notAfter = c.NotAfter
		}
	}
	leaf, err := ca.issue(pub, name, now.Add(-Skew), notAfter)
	if err != nil {
		return nil, err
	}
	chain := append([]*x509.Certificate{leaf}, ca.chain...)
	if name.Kind == KindAPIServer {
		// A joining cluster or node knows the root by its fingerprint only, so
		// the API server hands it over in the handshake.
		chain = append(chain, ca.root)
	}
	return encodeCerts(chain...), nil
}

func (ca *CA) issue(pub crypto.PublicKey, name Name, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	uri, err := url.Parse(name.String())
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		URIs:                  []*url.URL{uri},
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca.cert, pub, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

const maxCSR = 8 << 10

// KeyOfCSR is the SHA-256 of the public key in a request that proves its key.
func KeyOfCSR(der []byte) ([]byte, error) {
	if _, err := csrKey(der); err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	return HashSecret(csr.RawSubjectPublicKeyInfo), nil
}

// csrKey checks a request and returns its public key.
func csrKey(der []byte) (crypto.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request of %d bytes, at most %d are allowed", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("malformed certificate request: %w", err)
	}
	switch k := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, errors.New("certificate request with an ECDSA key that is neither P-256 nor P-384")
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("certificate request with a key of type %T; use ECDSA P-256", k)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request does not prove its key: %w", err)
	}
	return csr.PublicKey, nil
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// findKey reads the first private key in text: PKCS#8, SEC 1 or PKCS#1.
func findKey(text []byte) (crypto.Signer, error) {
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("no PEM private key in it")
		}
		var key any
		var err error
		switch block.Type {
		case pemKey:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("malformed private key: %w", err)
		}
		switch k := key.(type) {
		case *ecdsa.PrivateKey:
			return k, nil
		case ed25519.PrivateKey:
			return k, nil
		case *rsa.PrivateKey:
			return k, nil
		}
		return nil, fmt.Errorf("a private key of type %T cannot sign", key)
	}
}

// onlyCerts leaves keys out, for files that hold both.
func onlyCerts(text []byte) []byte {
	var out bytes.Buffer
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out.Bytes()
		}
		if block.Type == pemCertificate {
			_ = pem.Encode(&out, block) // a bytes.Buffer takes everything
		}
	}
}

// HashSecret is how a token's secret is kept: its SHA-256. The secret is
// random and long, so nothing slower is needed.
func HashSecret(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}
