// Package certs is a cluster's trust domain: its CA, the names in certificates,
// the bundles of CAs that other clusters are verified against, leaves that
// renew themselves, and one-time tokens.
//
// Every cluster is one trust domain. A connection that claims a name of cluster
// B is verified against the bundle of B alone: no CA can vouch for a name
// outside its own cluster.
package certs

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// The kinds of names.
const (
	KindAPIServer = "apiserver"
	KindNode      = "node"
)

// Name is who a certificate speaks for: spiffe://<cluster>/apiserver or
// spiffe://<cluster>/node/<node>.
type Name struct {
	Cluster string // a DNS label, lower case
	Kind    string // KindAPIServer or KindNode
	Node    string // a DNS name, lower case; only for KindNode
}

// APIServer is the name of a cluster's mesh API server.
func APIServer(cluster string) Name { return Name{Cluster: cluster, Kind: KindAPIServer} }

// Node is the name of a cluster's node.
func Node(cluster, node string) Name { return Name{Cluster: cluster, Kind: KindNode, Node: node} }

const maxNameBytes = 400 // scheme, a 63-byte cluster, a 253-byte node, with room

const scheme = "spiffe://"

// String is the name's URI, in the one form that certificates may carry.
func (n Name) String() string {
	if n.Kind == KindNode {
		return scheme + n.Cluster + "/" + n.Kind + "/" + n.Node
	}
	return scheme + n.Cluster + "/" + n.Kind
}

// Check says what is wrong with n; nil if it can stand in a certificate.
func (n Name) Check() error {
	if err := CheckCluster(n.Cluster); err != nil {
		return err
	}
	switch n.Kind {
	case KindAPIServer:
		if n.Node != "" {
			return errors.New("an apiserver name has no node part")
		}
		return nil
	case KindNode:
		return CheckNode(n.Node)
	}
	return fmt.Errorf("unknown kind %s, expected %s or %s/<node>", quote(n.Kind), KindAPIServer, KindNode)
}

// CheckCluster says whether s can name a cluster: a DNS label of at most 63
// lower-case ASCII letters, digits and dashes.
func CheckCluster(s string) error {
	if !isLabel(s) {
		return fmt.Errorf("cluster name %s is not a DNS label (a-z, 0-9 and -, at most 63)", quote(s))
	}
	return nil
}

// CheckNode says whether s can name a node: lower-case DNS labels joined by
// dots, at most 253 bytes.
func CheckNode(s string) error {
	if len(s) > 253 {
		return fmt.Errorf("node name of %d bytes, at most 253 are allowed", len(s))
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return fmt.Errorf("node name %s is not a DNS name (a-z, 0-9, - and .)", quote(s))
		}
	}
	return nil
}

func isLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// ParseName reads a name out of a URI. There is exactly one spelling of a name;
// everything else (upper case, ports, queries, escapes, dots to climb) is refused.
func ParseName(u *url.URL) (Name, error) {
	if u == nil {
		return Name{}, errors.New("no URI")
	}
	return parseName(u.String())
}

func parseName(s string) (Name, error) {
	if len(s) > maxNameBytes {
		return Name{}, fmt.Errorf("name of %d bytes, at most %d are allowed", len(s), maxNameBytes)
	}
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return Name{}, fmt.Errorf("name %s does not begin with %s", quote(s), scheme)
	}
	parts := strings.SplitN(rest, "/", 4)
	n := Name{Cluster: parts[0]}
	switch {
	case len(parts) == 2 && parts[1] == KindAPIServer:
		n.Kind = KindAPIServer
	case len(parts) == 3 && parts[1] == KindNode:
		n.Kind, n.Node = KindNode, parts[2]
	default:
		return Name{}, fmt.Errorf("name %s is neither %s<cluster>/%s nor %s<cluster>/%s/<node>",
			quote(s), scheme, KindAPIServer, scheme, KindNode)
	}
	if err := n.Check(); err != nil {
		return Name{}, fmt.Errorf("name %s: %w", quote(s), err)
	}
	return n, nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// FromCertificate reads the name of a leaf. The certificate must carry exactly
// one subject alternative name, and that a URI: of two names a verifier might
// check the one and an authoriser read the other.
func FromCertificate(c *x509.Certificate) (Name, error) {
	var raw []byte
	for _, ext := range c.Extensions {
		if ext.Id.Equal(oidSubjectAltName) {
			if raw != nil {
				return Name{}, errors.New("two subject alternative name extensions, expected one")
			}
			raw = ext.Value
		}
	}
	if raw == nil {
		return Name{}, errors.New("no name: the certificate has no URI in its subject alternative names")
	}
	// The raw bytes are read, as url.Parse has already folded the scheme's case.
	var names asn1.RawValue
	if rest, err := asn1.Unmarshal(raw, &names); err != nil || len(rest) > 0 || !names.IsCompound {
		return Name{}, errors.New("malformed subject alternative names")
	}
	var first asn1.RawValue
	rest, err := asn1.Unmarshal(names.Bytes, &first)
	if err != nil {
		return Name{}, errors.New("malformed subject alternative names")
	}
	if len(rest) > 0 {
		return Name{}, errors.New("more than one subject alternative name, expected exactly one URI")
	}
	if first.Class != asn1.ClassContextSpecific || first.Tag != 6 {
		return Name{}, errors.New("the subject alternative name is not a URI")
	}
	return parseName(string(first.Bytes))
}

// quote makes a foreign string safe to print and short.
func quote(s string) string {
	if len(s) > 100 {
		return strconv.QuoteToASCII(s[:100]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
