package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var t0 = time.Now()

func testCA(t testing.TB, cluster string) *CA {
	t.Helper()
	ca, err := OpenCA(filepath.Join(t.TempDir(), "ca"), cluster, t0)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func testCSR(t testing.TB) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func rawChain(t testing.TB, text []byte) (raw [][]byte) {
	t.Helper()
	cs, err := ParseBundle(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cs {
		raw = append(raw, c.Raw)
	}
	return raw
}

func sign(t testing.TB, ca *CA, n Name, ttl time.Duration, now time.Time) [][]byte {
	t.Helper()
	csr, _ := testCSR(t)
	text, err := ca.Sign(csr, n, ttl, now)
	if err != nil {
		t.Fatal(err)
	}
	return rawChain(t, text)
}

func wantErr(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestNames(t *testing.T) {
	for _, n := range []Name{APIServer("aws"), Node("aws", "n1"), Node("a-1", "ip-10-0-0-1.eu.internal")} {
		u, err := url.Parse(n.String())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseName(u); err != nil || got != n {
			t.Errorf("%s: got %v, %v", n, got, err)
		}
	}
	for _, s := range []string{
		"", "spiffe://", "spiffe://aws", "spiffe://aws/", "http://aws/apiserver", "SPIFFE://aws/apiserver", "spiffe://AWS/apiserver",
		"spiffe://aws/APISERVER", "spiffe://aws/apiserver/", "spiffe://aws/apiserver/x", "spiffe://aws/node", "spiffe://aws/node/",
		"spiffe://aws/node/a/b", "spiffe://aws/node/../apiserver", "spiffe://aws/node/*", "spiffe://*/apiserver", "spiffe://aws.example/apiserver",
		"spiffe://aws/node/a\x00b", "spiffe://aws\x00/apiserver", "spiffe://aws/node/a%00", "spiffe://u@aws/apiserver", "spiffe://aws:1/apiserver",
		"spiffe://aws/apiserver?x=1", "spiffe://aws/apiserver#x", "spiffe://-aws/apiserver", "spiffe://aws-/apiserver", "spiffe://aws/node/.a",
		"spiffe://aws/node/a..b", "spiffe://äws/apiserver", "spiffe:///apiserver", "spiffe://aws//apiserver", "spiffe://aws/node/" + strings.Repeat("a.", 200) + "a",
	} {
		if n, err := parseName(s); err == nil {
			t.Errorf("%q accepted as %v", s, n)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("spiffe://aws/node/n1")
	f.Add("spiffe://aws/apiserver")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseName(s)
		if err == nil && n.String() != s {
			t.Fatalf("%q read as %q: two spellings of one name", s, n)
		}
	})
}

// forge signs what no CA of ours would.
func forge(t testing.TB, ca *CA, edit func(*x509.Certificate)) [][]byte {
	t.Helper()
	_, key := testCSR(t)
	u, _ := url.Parse("spiffe://aws/node/n1")
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: t0.Add(-time.Hour), NotAfter: t0.Add(time.Hour), URIs: []*url.URL{u}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	edit(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{der}
}

func sanExtension(t testing.TB, names ...asn1.RawValue) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSubjectAltName, Value: der}
}

func uri(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(s)}
}

func TestBadCertificates(t *testing.T) {
	aws, gcp := testCA(t, "aws"), testCA(t, "gcp")
	b := NewBundles()
	if err := errors.Join(b.Set("aws", aws.Bundle()), b.Set("gcp", gcp.Bundle())); err != nil {
		t.Fatal(err)
	}
	raw := func(s string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs, c.ExtraExtensions = nil, []pkix.Extension{sanExtension(t, uri(s))}
		}
	}
	good := sign(t, aws, Node("aws", "n1"), time.Hour, t0)
	long := good
	for len(long) < 2000 {
		long = append(long, aws.cert.Raw)
	}
	for _, c := range []struct {
		name  string
		chain [][]byte
		want  []string
	}{
		{"none", nil, []string{"no certificate"}},
		{"two URIs", forge(t, aws, func(c *x509.Certificate) {
			u, _ := url.Parse("spiffe://aws/apiserver")
			c.URIs = append(c.URIs, u)
		}), []string{"more than one"}},
		{"URI and DNS name", forge(t, aws, func(c *x509.Certificate) { c.DNSNames = []string{"x"} }), []string{"more than one"}},
		{"DNS name", forge(t, aws, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"x"} }), []string{"not a URI"}},
		{"IP address", forge(t, aws, func(c *x509.Certificate) { c.URIs, c.IPAddresses = nil, []net.IP{{1, 2, 3, 4}} }), []string{"not a URI"}},
		{"no name", forge(t, aws, func(c *x509.Certificate) { c.URIs = nil }), []string{"no URI"}},
		{"wildcard", forge(t, aws, raw("spiffe://aws/node/*")), []string{"not a DNS name"}},
		{"upper case", forge(t, aws, raw("spiffe://AWS/apiserver")), []string{"AWS"}},
		{"upper case scheme", forge(t, aws, raw("SPIFFE://aws/apiserver")), []string{"does not begin with spiffe://"}},
		{"NUL", forge(t, aws, raw("spiffe://aws/node/a\x00b")), nil},
		{"long name", forge(t, aws, raw("spiffe://aws/node/"+strings.Repeat("a", 4000))), nil},
		{"huge", forge(t, aws, func(c *x509.Certificate) { c.Subject.CommonName = strings.Repeat("a", 1<<20) }), []string{"bytes, at most"}},
		{"long chain", long, []string{"2000 certificates, at most"}},
		{"garbage", [][]byte{{1, 2, 3}}, nil},
		{"CA as leaf", forge(t, aws, func(c *x509.Certificate) { c.IsCA = true }), []string{"that of a CA"}},
		{"expired", forge(t, aws, func(c *x509.Certificate) { c.NotAfter = t0.Add(-time.Minute) }), []string{"node/n1", "expired on", "renew"}},
		{"not yet", forge(t, aws, func(c *x509.Certificate) { c.NotBefore = t0.Add(time.Minute) }), []string{"node/n1", "valid only from", "clock"}},
		{"for email", forge(t, aws, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }), nil},
		{"gcp speaks for aws", forge(t, gcp, func(*x509.Certificate) {}), []string{"not signed by a CA of cluster aws"}},
		{"unknown cluster", sign(t, testCA(t, "stranger"), APIServer("stranger"), time.Hour, t0), []string{"no CA bundle", "not joined"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			n, err := b.Verify(c.chain, t0)
			if err == nil {
				t.Fatalf("accepted as %v", n)
			}
			wantErr(t, err, c.want...)
			if d := time.Since(begin); d > 200*time.Millisecond {
				t.Errorf("took %v", d)
			}
			for _, r := range err.Error() {
				if r < ' ' {
					t.Errorf("control character in %q", err)
				}
			}
		})
	}
	if n, err := b.Verify(good, t0); err != nil || n != Node("aws", "n1") {
		t.Errorf("good certificate: %v, %v", n, err)
	}
	if _, err := b.Verify(good, t0.Add(-Skew+time.Second)); err != nil {
		t.Errorf("a clock %v behind: %v", Skew, err)
	}
	b.Delete("aws")
	if _, err := b.Verify(good, t0); !errors.Is(err, ErrUnknownCluster) {
		t.Errorf("after removal: %v", err)
	}
}

func TestGraceIsForNodesAndNinetyDays(t *testing.T) {
	ca := testCA(t, "aws")
	b := NewBundles()
	if err := b.Set("aws", ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	node, server := sign(t, ca, Node("aws", "n1"), time.Hour, t0), sign(t, ca, APIServer("aws"), time.Hour, t0)
	for _, c := range []struct {
		chain   [][]byte
		after   time.Duration
		expired bool
		ok      bool
	}{
		{node, 0, false, true},
		{node, 2 * time.Hour, true, true},
		{node, Grace, true, true},
		{node, Grace + 2*time.Hour, false, false},
		{server, 2 * time.Hour, false, false},
	} {
		_, expired, err := b.VerifyGrace(c.chain, t0.Add(c.after))
		if expired != c.expired || (err == nil) != c.ok {
			t.Errorf("after %v: expired %v, %v", c.after, expired, err)
		}
	}
}

func TestCAIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a, err := OpenCA(dir, "aws", t0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenCA(dir, "aws", t0)
	if err != nil || a.Fingerprint() != b.Fingerprint() {
		t.Fatalf("another CA after a restart: %v", err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "ca.pem"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	_, err = OpenCA(dir, "gcp", t0)
	wantErr(t, err, "not to cluster gcp")
	_, err = OpenCA(dir, "aws", t0.Add(2*caTTL))
	wantErr(t, err, "expired", "supply a new one")
	_, err = OpenCA(dir, "aws", t0.Add(-time.Hour))
	wantErr(t, err, "clock")
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = OpenCA(dir, "aws", t0)
	wantErr(t, err, "ca.pem", "backup")
}

// caFile makes a CA certificate below parent (nil = self-signed).
func caFile(t *testing.T, name string, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := newSerial()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: t0.Add(-time.Hour), NotAfter: t0.Add(100 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

func TestCAFromFiles(t *testing.T) {
	root, rootKey := caFile(t, "root", nil, nil)
	mid, midKey := caFile(t, "mid", root, rootKey)
	low, lowKey := caFile(t, "low", mid, midKey)
	next, _ := caFile(t, "next", nil, nil)
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keyText := func(k crypto.Signer) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})
	}
	key := file("key", keyText(lowKey))
	ca, err := LoadCA("aws", t0, file("chain", encodeCerts(low, mid, root)), key, file("next", encodeCerts(next)))
	if err != nil {
		t.Fatal(err)
	}
	if ca.Fingerprint() != Fingerprint(root) || string(ca.Bundle()) != string(encodeCerts(root, next)) {
		t.Errorf("bundle is not the roots: %s", ca.Bundle())
	}
	b := NewBundles()
	if err := b.Set("aws", ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	node := sign(t, ca, Node("aws", "n"), time.Hour, t0)
	if len(node) != 3 {
		t.Errorf("%d certificates are sent, want leaf and two intermediates", len(node))
	}
	if _, err := b.Verify(node, t0); err != nil {
		t.Error(err)
	}
	server := sign(t, ca, APIServer("aws"), time.Hour, t0)
	if n, _, err := VerifyPinned(Fingerprint(root), server, t0); err != nil || n != APIServer("aws") {
		t.Errorf("pinned: %v, %v", n, err)
	}
	_, _, err = VerifyPinned(Fingerprint(next), server, t0)
	wantErr(t, err, Fingerprint(root), Fingerprint(next))
	if !errors.Is(err, ErrOtherCA) {
		t.Error("not ErrOtherCA")
	}
	// Short of the leaf's wish, never beyond the CA's end.
	leaf, _ := x509.ParseCertificate(sign(t, ca, Node("aws", "n"), 1000*time.Hour, t0)[0])
	if leaf.NotAfter.After(root.NotAfter) {
		t.Errorf("leaf until %v outlives its CA", leaf.NotAfter)
	}
	// An intermediate alone is its own trust anchor.
	if ca, err := LoadCA("aws", t0, file("low", encodeCerts(low)), key); err != nil || ca.Fingerprint() != Fingerprint(low) {
		t.Errorf("without its root: %v", err)
	}
	for name, c := range map[string]struct {
		certs, key []byte
		want       string
	}{
		"order":     {encodeCerts(low, root, mid), keyText(lowKey), "is not signed by the next one"},
		"other key": {encodeCerts(low, mid, root), keyText(midKey), "not that of the first"},
		"no key":    {encodeCerts(low), nil, "no PEM private key"},
		"no cert":   {nil, keyText(lowKey), "no PEM certificate"},
		"a leaf":    {encodeCerts(parse(t, node[0])), keyText(lowKey), ""},
	} {
		_, err := LoadCA("aws", t0, file("c", c.certs), file("k", c.key))
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSignRefuses(t *testing.T) {
	ca := testCA(t, "aws")
	csr, _ := testCSR(t)
	_, err := ca.Sign(csr, Node("gcp", "n"), 0, t0)
	wantErr(t, err, "does not sign names of cluster gcp")
	_, err = ca.Sign(csr, Node("aws", "N"), 0, t0)
	wantErr(t, err, "not a DNS name")
	_, err = ca.Sign(csr[:40], Node("aws", "n"), 0, t0)
	wantErr(t, err, "malformed")
	_, err = ca.Sign(make([]byte, 1<<20), Node("aws", "n"), 0, t0)
	wantErr(t, err, "bytes, at most")
	bad := append([]byte(nil), csr...)
	bad[len(bad)-1] ^= 1
	_, err = ca.Sign(bad, Node("aws", "n"), 0, t0)
	wantErr(t, err, "does not prove its key")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ca.Sign(der, Node("aws", "n"), 0, t0)
	wantErr(t, err, "ECDSA")
	// The request's own wishes do not count.
	k, _ := newKey()
	der, _ = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil"}, Subject: pkix.Name{CommonName: "root"}}, k)
	text, err := ca.Sign(der, Node("aws", "n"), 0, t0)
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, rawChain(t, text)[0])
	if leaf.Subject.CommonName != "" || len(leaf.DNSNames) > 0 || leaf.IsCA || leaf.NotAfter.Sub(t0) > DefaultTTL {
		t.Errorf("signed more than the name: %v %v", leaf.Subject, leaf.DNSNames)
	}
}
