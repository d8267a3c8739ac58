package certs

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

// TokenKind says what a token is good for.
type TokenKind string

const (
	JoinToken TokenKind = "join" // a cluster joins the mesh
	NodeToken TokenKind = "node" // a node gets its first certificate
)

// Token lets its bearer in once. The store keeps its ID, expiry and the hash
// of its secret; the bearer learns whom to call and by which CA to know it.
type Token struct {
	Kind        TokenKind
	Cluster     string    // that made it
	Node        string    // node tokens: the only name it is good for
	Addresses   []string  // host:port of the mesh port, in order of preference
	Fingerprint string    // of the cluster's CA: SHA-256, hex
	ID          string    // 16 hex digits; no secret
	Secret      []byte    // 32 random bytes
	Expires     time.Time // to the second
}

const (
	secretBytes   = 32
	idBytes       = 8
	checksumBytes = 4
	maxTokenText  = 4 << 10
	maxAddresses  = 8
	tokenPrefix   = "tombolo-"
)

type tokenBody struct {
	Cluster     string   `json:"c"`
	Node        string   `json:"n,omitempty"`
	Addresses   []string `json:"a"`
	Fingerprint []byte   `json:"f"`
	ID          []byte   `json:"i"`
	Secret      []byte   `json:"s"`
	Expires     int64    `json:"e"`
}

// NewToken draws an ID and a secret. node is for node tokens only.
func NewToken(kind TokenKind, cluster, node string, addresses []string, fingerprint string, expires time.Time) (Token, error) {
	id, secret := make([]byte, idBytes), make([]byte, secretBytes)
	rand.Read(id) // never fails: a system without randomness ends the process
	rand.Read(secret)
	t := Token{
		Kind: kind, Cluster: cluster, Node: node, Addresses: addresses, Fingerprint: fingerprint,
		ID: hex.EncodeToString(id), Secret: secret, Expires: time.Unix(expires.Unix(), 0),
	}
	return t, t.check()
}

func (t Token) check() error {
	if t.Kind != JoinToken && t.Kind != NodeToken {
		return fmt.Errorf("unknown kind of token %s", quote(string(t.Kind)))
	}
	if err := CheckCluster(t.Cluster); err != nil {
		return err
	}
	if (t.Node != "") != (t.Kind == NodeToken) {
		return errors.New("a node token names a node, a join token does not")
	}
	if t.Node != "" {
		if err := CheckNode(t.Node); err != nil {
			return err
		}
	}
	if len(t.Addresses) == 0 || len(t.Addresses) > maxAddresses {
		return fmt.Errorf("%d addresses, expected 1 to %d", len(t.Addresses), maxAddresses)
	}
	for _, a := range t.Addresses {
		if len(a) > 300 {
			return fmt.Errorf("an address of %d bytes", len(a))
		}
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			return fmt.Errorf("address %s is not host:port", quote(a))
		}
	}
	if fp, err := hex.DecodeString(t.Fingerprint); err != nil || len(fp) != sha256.Size || hex.EncodeToString(fp) != t.Fingerprint {
		return errors.New("the CA fingerprint is not a SHA-256 in hex")
	}
	if id, err := hex.DecodeString(t.ID); err != nil || len(id) != idBytes || hex.EncodeToString(id) != t.ID {
		return errors.New("malformed token ID")
	}
	if len(t.Secret) != secretBytes {
		return errors.New("malformed secret")
	}
	return nil
}

// Text is the token for people to copy: it holds the secret. The body carries
// its own length and a checksum, so that a bad paste is told from a bad token.
func (t Token) Text() string {
	fp, _ := hex.DecodeString(t.Fingerprint) // checked when the token was made
	id, _ := hex.DecodeString(t.ID)
	body, _ := json.Marshal(tokenBody{t.Cluster, t.Node, t.Addresses, fp, id, t.Secret, t.Expires.Unix()})
	raw := binary.BigEndian.AppendUint16(nil, uint16(len(body)))
	raw = append(raw, body...)
	raw = append(raw, tokenSum(t.Kind, raw)...)
	return tokenPrefix + string(t.Kind) + "-" + base64.RawURLEncoding.EncodeToString(raw)
}

func tokenSum(kind TokenKind, raw []byte) []byte {
	sum := sha256.Sum256(append([]byte(kind), raw...))
	return sum[:checksumBytes]
}

// String names the token without its secret.
func (t Token) String() string {
	return fmt.Sprintf("%s token %s of cluster %s", t.Kind, t.ID, t.Cluster)
}

// GoString keeps the secret out of %#v too.
func (t Token) GoString() string { return t.String() }

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// ParseToken reads a token's text. Whitespace that a terminal put into it is
// ignored. Whether the token has expired is for the caller to say (Expired).
func ParseToken(text string) (Token, error) {
	if len(text) > maxTokenText {
		return Token{}, fmt.Errorf("a token of %d bytes, at most %d are allowed; paste the token alone", len(text), maxTokenText)
	}
	text = strings.Join(strings.Fields(text), "")
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("this is not a token: it does not begin with %s%s- or %s%s-; paste the whole line that `tombolo mesh invite` printed",
			tokenPrefix, JoinToken, tokenPrefix, NodeToken)
	}
	var kind TokenKind
	for _, k := range []TokenKind{JoinToken, NodeToken} {
		if body, ok := strings.CutPrefix(rest, string(k)+"-"); ok {
			kind, rest = k, body
		}
	}
	if kind == "" {
		return Token{}, fmt.Errorf("unknown kind of token, expected %s%s-… or %s%s-…", tokenPrefix, JoinToken, tokenPrefix, NodeToken)
	}
	body, err := tokenBytes(kind, rest)
	if err != nil {
		return Token{}, err
	}
	var b tokenBody
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&b); err != nil {
		return Token{}, errors.New("malformed token; ask for a new one")
	}
	t := Token{
		Kind: kind, Cluster: b.Cluster, Node: b.Node, Addresses: b.Addresses, Fingerprint: hex.EncodeToString(b.Fingerprint),
		ID: hex.EncodeToString(b.ID), Secret: b.Secret, Expires: time.Unix(b.Expires, 0),
	}
	if err := t.check(); err != nil {
		return Token{}, fmt.Errorf("malformed token: %w; ask for a new one", err)
	}
	return t, nil
}

// tokenBytes undoes the encoding and says how a paste went wrong.
func tokenBytes(kind TokenKind, text string) ([]byte, error) {
	const again = "paste it again as one piece"
	for i, c := range text {
		if c > 127 || !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", c) {
			return nil, fmt.Errorf("the token has a character %q at place %d that no token has; %s", c, i+1, again)
		}
	}
	if len(text) < 4 {
		return nil, fmt.Errorf("the token was cut short: next to nothing follows the prefix; %s", again)
	}
	head, err := base64.RawURLEncoding.DecodeString(text[:4])
	if err != nil {
		return nil, fmt.Errorf("the token is damaged; %s", again)
	}
	want := base64.RawURLEncoding.EncodedLen(2 + int(binary.BigEndian.Uint16(head)) + checksumBytes)
	switch {
	case len(text) < want:
		return nil, fmt.Errorf("the token was cut short: %d of %d characters are there; %s", len(text), want, again)
	case len(text) > want:
		return nil, fmt.Errorf("the token is too long: %d characters, expected %d; %s", len(text), want, again)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("the token is damaged; %s", again)
	}
	body := raw[:len(raw)-checksumBytes]
	if !bytes.Equal(tokenSum(kind, body), raw[len(body):]) {
		return nil, fmt.Errorf("the token is damaged (its checksum does not fit); %s", again)
	}
	return body[2:], nil
}

// Expired reports whether the token's time is over.
func (t Token) Expired(now time.Time) bool { return !now.Before(t.Expires) }
