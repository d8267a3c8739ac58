package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"

	maxBundleBytes = 64 << 10
	maxBundleCerts = 16
)

// Fingerprint is the SHA-256 of a certificate, in lower-case hex.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// ParseBundle reads PEM certificates, at most 16 in 64 KiB. Anything else in
// the text (keys, garbage) is refused.
func ParseBundle(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxBundleBytes {
		return nil, fmt.Errorf("%d bytes of certificates, at most %d are allowed", len(text), maxBundleBytes)
	}
	var out []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if len(out) == 0 {
				return nil, errors.New("no PEM certificate in it")
			}
			return out, nil
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("a PEM block %s where only %s belongs", quote(block.Type), pemCertificate)
		}
		if len(out) == maxBundleCerts {
			return nil, fmt.Errorf("more than %d certificates", maxBundleCerts)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
}

func encodeCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})...)
	}
	return out
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// WriteFile replaces path in one step, so that a crash or a power cut leaves the
// old content or the new one, and never a part. It is for what must not be lost
// beside a certificate, too: whoever keeps such state keeps it this way. The
// folder must exist.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // made with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// privateDir makes dir, and makes sure that only its owner gets in.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}
