package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// All configurations here: TLS 1.3 alone, no session tickets (a resumed
// session would outlive the removal of a CA), and verification by our own rules
// in VerifyConnection, which the standard library calls on every handshake.

func baseTLS(leaf *Leaf) *tls.Config {
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
	}
	if leaf != nil {
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if cert := leaf.Certificate(); cert != nil {
				return cert, nil
			}
			return nil, fmt.Errorf("no certificate for %s yet", leaf.Name())
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := leaf.Certificate(); cert != nil {
				return cert, nil
			}
			return new(tls.Certificate), nil // sends none
		}
	}
	return c
}

// ServerTLS serves with leaf. A client may come without a certificate; one that
// has a certificate must verify.
func ServerTLS(leaf *Leaf, bundles *Bundles) *tls.Config {
	c := IntroductionTLS(leaf)
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return nil
		}
		_, err := bundles.Verify(RawChain(s), time.Now())
		return err
	}
	return c
}

// IntroductionTLS serves with leaf and lets every client certificate pass the
// handshake, as that of a cluster which is about to join must. The caller
// verifies RawChain with Bundles before it believes anything.
func IntroductionTLS(leaf *Leaf) *tls.Config {
	c := baseTLS(leaf)
	c.ClientAuth = tls.RequestClientCert
	return c
}

// ClientTLS dials want and nobody else. leaf may be nil: then no certificate
// is shown.
func ClientTLS(leaf *Leaf, bundles *Bundles, want Name) *tls.Config {
	return clientTLS(leaf, want, func(raw [][]byte) (Name, error) { return bundles.Verify(raw, time.Now()) })
}

// BundleTLS is ClientTLS for a cluster whose bundle is only proposed so far.
func BundleTLS(leaf *Leaf, bundle []byte, want Name) *tls.Config {
	return clientTLS(leaf, want, func(raw [][]byte) (Name, error) { return VerifyWith(bundle, raw, time.Now()) })
}

// PinnedTLS dials want, known only by the fingerprint of its CA.
func PinnedTLS(leaf *Leaf, fingerprint string, want Name) *tls.Config {
	return clientTLS(leaf, want, func(raw [][]byte) (Name, error) {
		name, _, err := VerifyPinned(fingerprint, raw, time.Now())
		return name, err
	})
}

func clientTLS(leaf *Leaf, want Name, verify func([][]byte) (Name, error)) *tls.Config {
	c := baseTLS(leaf)
	c.InsecureSkipVerify = true // names are URIs: VerifyConnection below does it all
	c.ServerName = want.Cluster
	c.VerifyConnection = func(s tls.ConnectionState) error {
		got, err := verify(RawChain(s))
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("the server is %s, expected %s: the address belongs to something else", got, want)
		}
		return nil
	}
	return c
}

// RawChain is the chain that the other side sent: DER, leaf first.
func RawChain(s tls.ConnectionState) [][]byte {
	raw := make([][]byte, len(s.PeerCertificates))
	for i, c := range s.PeerCertificates {
		raw[i] = c.Raw
	}
	return raw
}

// Root returns the certificate of a verified chain that has the fingerprint.
func Root(s tls.ConnectionState, fingerprint string) (*x509.Certificate, error) {
	for _, c := range s.PeerCertificates {
		if Fingerprint(c) == fingerprint {
			return c, nil
		}
	}
	return nil, errors.New("the chain does not hold its root")
}
