package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func signer(ca *CA, name Name, ttl time.Duration) SignFunc {
	return func(_ context.Context, csr []byte) ([]byte, []byte, error) {
		chain, err := ca.Sign(csr, name, ttl, time.Now())
		return chain, ca.Bundle(), err
	}
}

func TestRenewalAtHalfLife(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ca, err := OpenCA(filepath.Join(dir, "ca"), "aws", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		const ttl = 24 * time.Hour
		name := Node("aws", "n1")
		leaf, err := NewLeaf(filepath.Join(dir, "leaf"), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		var at []time.Time
		var down atomic.Bool
		sign := func(ctx context.Context, csr []byte) ([]byte, []byte, error) {
			if down.Load() {
				return nil, nil, errors.New("down")
			}
			at = append(at, time.Now())
			return signer(ca, name, ttl)(ctx, csr)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- leaf.Run(ctx, sign) }()
		time.Sleep(10 * ttl)
		synctest.Wait()
		if len(at) < 18 || len(at) > 23 {
			t.Errorf("%d renewals in ten lives, want about 20", len(at))
		}
		for i := 1; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d < ttl*45/100 || d > ttl*55/100+time.Second {
				t.Errorf("renewal after %v, want half of %v give or take a tenth of that", d, ttl)
			}
		}
		// The signer is away for longer than the certificate lives.
		down.Store(true)
		time.Sleep(2 * ttl)
		if leaf.Valid() {
			t.Error("still valid")
		}
		down.Store(false)
		time.Sleep(retryMost + time.Minute)
		synctest.Wait()
		if !leaf.Valid() {
			t.Error("not renewed when the signer came back")
		}
		// A restart finds it.
		again, err := NewLeaf(filepath.Join(dir, "leaf"), name, nil)
		if err != nil || !again.Valid() || !again.Expires().Equal(leaf.Expires()) {
			t.Errorf("after a restart: %v, %v", again.Expires(), err)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestLeafFile(t *testing.T) {
	ca, dir, name := testCA(t, "aws"), filepath.Join(t.TempDir(), "leaf"), Node("aws", "n1")
	leaf, err := NewLeaf(dir, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if leaf.Certificate() != nil || leaf.Valid() {
		t.Error("a certificate out of nothing")
	}
	csr, err := leaf.CSR()
	if err != nil {
		t.Fatal(err)
	}
	// The same key is asked for again until an answer comes, also after a crash.
	other, err := NewLeaf(dir, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	csr2, err := other.CSR()
	if err != nil {
		t.Fatal(err)
	}
	k1, _ := KeyOfCSR(csr)
	k2, _ := KeyOfCSR(csr2)
	if string(k1) != string(k2) {
		t.Error("a new key after a crash")
	}
	if err := other.Renew(t.Context(), signer(ca, Node("aws", "n2"), time.Hour)); err == nil || !strings.Contains(err.Error(), "is for") {
		t.Errorf("certificate of another node: %v", err)
	}
	if err := other.Renew(t.Context(), signer(ca, name, time.Hour)); err != nil {
		t.Fatal(err)
	}
	csr3, _ := other.CSR()
	if k3, _ := KeyOfCSR(csr3); string(k3) == string(k1) {
		t.Error("the key of an answered request is used again")
	}
	path := filepath.Join(dir, "leaf.pem")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	torn, err := NewLeaf(dir, name, nil)
	if err != nil || torn.Certificate() != nil {
		t.Errorf("damaged file: %v", err)
	}
}

// handshake connects two configurations and returns both sides' errors.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		} else {
			a.Close()
		}
		done <- err
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	return <-done, clientErr
}

func installed(t *testing.T, ca *CA, name Name) *Leaf {
	t.Helper()
	leaf, err := NewLeaf("", name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.Renew(t.Context(), signer(ca, name, time.Hour)); err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestTLS(t *testing.T) {
	aws, gcp := testCA(t, "aws"), testCA(t, "gcp")
	b := NewBundles()
	if err := errors.Join(b.Set("aws", aws.Bundle()), b.Set("gcp", gcp.Bundle())); err != nil {
		t.Fatal(err)
	}
	server := installed(t, aws, APIServer("aws"))
	node := installed(t, gcp, Node("gcp", "n"))
	stranger := installed(t, testCA(t, "x"), Node("x", "n"))
	empty, _ := NewLeaf("", Node("gcp", "m"), nil)
	conf := ServerTLS(server, b)
	want := APIServer("aws")
	for name, c := range map[string]struct {
		client *tls.Config
		ok     bool
		say    string
	}{
		"verified":        {ClientTLS(node, b, want), true, ""},
		"without a leaf":  {ClientTLS(nil, b, want), true, ""},
		"leaf to come":    {ClientTLS(empty, b, want), true, ""},
		"pinned":          {PinnedTLS(nil, aws.Fingerprint(), want), true, ""},
		"proposed bundle": {BundleTLS(node, aws.Bundle(), want), true, ""},
		"stranger":        {ClientTLS(stranger, b, want), false, "bad certificate"},
		"other server":    {ClientTLS(node, b, APIServer("gcp")), false, "expected spiffe://gcp/apiserver"},
		"wrong pin":       {PinnedTLS(nil, gcp.Fingerprint(), want), false, "expected " + gcp.Fingerprint()},
		"wrong bundle":    {BundleTLS(node, gcp.Bundle(), want), false, "not signed by a CA of cluster aws"},
		"not in bundles":  {ClientTLS(node, NewBundles(), want), false, "no CA bundle"},
		"TLS 1.2":         {&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}, false, "protocol version"},
	} {
		_, err := handshake(t, conf, c.client)
		if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A reload needs no restart: the configuration made before serves the new one.
	before := server.Certificate()
	if err := server.Renew(t.Context(), signer(aws, want, time.Hour)); err != nil {
		t.Fatal(err)
	}
	client := ClientTLS(node, b, want)
	verify := client.VerifyConnection
	var serial string
	client.VerifyConnection = func(s tls.ConnectionState) error {
		serial = s.PeerCertificates[0].SerialNumber.String()
		return verify(s)
	}
	if _, err := handshake(t, conf, client); err != nil || serial == before.Leaf.SerialNumber.String() {
		t.Errorf("old certificate served: %v", err)
	}
}

func TestNoResumption(t *testing.T) {
	ca := testCA(t, "aws")
	b := NewBundles()
	if err := b.Set("aws", ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	conf := ServerTLS(installed(t, ca, APIServer("aws")), b)
	client := ClientTLS(installed(t, ca, Node("aws", "n")), b, APIServer("aws"))
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4) // a client that tries
	resumed := false
	verify := client.VerifyConnection
	client.VerifyConnection = func(s tls.ConnectionState) error { resumed = resumed || s.DidResume; return verify(s) }
	for range 3 {
		if _, err := handshake(t, conf, client); err != nil {
			t.Fatal(err)
		}
	}
	if resumed {
		t.Error("a session was resumed")
	}
}

func TestBundlesTellOfChanges(t *testing.T) {
	a, b := testCA(t, "aws"), testCA(t, "aws")
	bundles := NewBundles()
	var got []string
	bundles.OnChange(func(c string) { got = append(got, c) })
	for _, f := range []func() error{
		func() error { return bundles.Set("aws", a.Bundle()) },
		func() error { return bundles.Set("aws", a.Bundle()) }, // the same: no change
		func() error { return bundles.Set("aws", append(a.Bundle(), b.Bundle()...)) },
		func() error { bundles.Delete("aws"); bundles.Delete("aws"); return nil },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 3 {
		t.Errorf("%d changes told of, want 3", len(got))
	}
	for name, text := range map[string]string{"empty": "", "garbage": "x", "key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"a leaf": string(encodeCerts(installed(t, a, Node("aws", "n")).Certificate().Leaf)), "too many": strings.Repeat(string(a.Bundle()), 17)} {
		if bundles.Set("aws", []byte(text)) == nil {
			t.Errorf("%s: accepted as a bundle", name)
		}
	}
	if SharedRoot(a.Bundle(), b.Bundle()) != nil || SharedRoot(append(a.Bundle(), b.Bundle()...), b.Bundle()) == nil {
		t.Error("shared roots are not found")
	}
}

func someToken(t testing.TB) Token {
	t.Helper()
	tok, err := NewToken(JoinToken, "aws", "", []string{"10.0.0.1:7443", "[fd00::1]:7443"}, strings.Repeat("ab", 32), t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenText(t *testing.T) {
	tok := someToken(t)
	text := tok.Text()
	for _, pasted := range []string{text, " " + text + "\n", text[:40] + "\n  " + text[40:]} {
		got, err := ParseToken(pasted)
		if err != nil || got.Text() != text || got.Cluster != "aws" || len(got.Addresses) != 2 || !got.Expires.Equal(tok.Expires) {
			t.Fatalf("%q: %+v, %v", pasted, got, err)
		}
	}
	node, err := NewToken(NodeToken, "aws", "n1", []string{"h:1"}, tok.Fingerprint, t0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseToken(node.Text()); err != nil || got.Node != "n1" || got.Kind != NodeToken || !got.Expired(t0) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, s := range []string{tok.String(), tok.GoString(), tok.LogValue().String()} {
		if strings.Contains(s, text[len(text)-20:]) || !strings.Contains(s, tok.ID) {
			t.Errorf("%q", s)
		}
	}
	last := text[len(text)-6]
	flip := byte('A')
	if last == flip {
		flip = 'B'
	}
	for name, c := range map[string]struct{ text, say string }{
		"cut short":    {text[:len(text)-7], "cut short"},
		"prefix only":  {"tombolo-join-", "cut short"},
		"three":        {text[:16], "cut short"},
		"doubled":      {text + text[13:], "too long"},
		"typo":         {text[:len(text)-6] + string(flip) + text[len(text)-5:], "damaged"},
		"other kind":   {"tombolo-node-" + text[13:], "damaged"},
		"foreign":      {"eyJhbGciOi", "not a token"},
		"unknown kind": {"tombolo-root-AAAA", "unknown kind"},
		"quotes":       {text + "”", "no token has"},
		"huge":         {strings.Repeat("a", 1<<20), "paste the token alone"},
	} {
		if _, err := ParseToken(c.text); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryDamageToATokenIsNoticed(t *testing.T) {
	text := someToken(t).Text()
	rapid.Check(t, func(t *rapid.T) {
		b := []byte(text)
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		c := rapid.Byte().Draw(t, "byte")
		if b[i] == c {
			return
		}
		b[i] = c
		if strings.Join(strings.Fields(string(b)), "") == text {
			return
		}
		if got, err := ParseToken(string(b)); err == nil {
			t.Fatalf("accepted: %v", got)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add(someToken(f).Text())
	f.Add("tombolo-join-AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.Text()); err != nil || again.Text() != tok.Text() {
			t.Fatalf("%q: %v", s, err)
		}
	})
}
