package clustermesh

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Root is what every key begins with. The number is the version of the layout.
const Root = "/tombolo/v1/"

// Scope says who may read a key.
type Scope string

const (
	ScopeExport Scope = "export" // admitted peers, local agents
	ScopeLocal  Scope = "local"  // local agents
	ScopeMirror Scope = "mirror" // local agents: a peer's export, copied
)

// Kind says what a key holds.
type Kind string

const (
	KindCluster       Kind = "cluster"       // no name
	KindNode          Kind = "node"          // <node>
	KindService       Kind = "service"       // <namespace>/<name>
	KindEndpointSlice Kind = "endpointslice" // <namespace>/<service>/<slice>
	KindIdentity      Kind = "identity"      // <identity in decimal>
	KindAddress       Kind = "address"       // <node>/<prefix>
	KindPolicy        Kind = "policy"        // <namespace>/<name>
	KindClusterPolicy Kind = "clusterpolicy" // <name>
	KindWorkload      Kind = "workload"      // <namespace>/<name>
	KindPeer          Kind = "peer"          // <cluster>
	KindDrain         Kind = "drain"         // <cluster>[/<namespace>/<name>]
)

// Kinds are all kinds, in key order.
var Kinds = []Kind{
	KindAddress, KindCluster, KindClusterPolicy, KindDrain, KindEndpointSlice, KindIdentity, KindNode,
	KindPeer, KindPolicy, KindService, KindWorkload,
}

// MaxClusterName is the length of the longest cluster name, in bytes.
const MaxClusterName = 32

const (
	maxKey  = 1024 // bytes of a key
	maxName = 253  // bytes of one part of a name: Kubernetes' own limit
)

// Key is a key of the store taken apart:
//
//	/tombolo/v1/<scope>/<cluster>/<kind>[/<name…>]
//
// Name is what the store holds after the kind, with its slashes. An address
// key's name ends in its prefix: a single address as such (10.1.1.5, fd00::5),
// every other prefix with a plus sign instead of the slash (10.1.0.0+16), both
// in canonical form, so that one prefix has one key.
type Key struct {
	Scope   Scope
	Cluster string
	Kind    Kind
	Name    string
}

// String is the key as the store holds it.
func (k Key) String() string {
	if k.Name == "" {
		return Root + string(k.Scope) + "/" + k.Cluster + "/" + string(k.Kind)
	}
	return Root + string(k.Scope) + "/" + k.Cluster + "/" + string(k.Kind) + "/" + k.Name
}

// ScopePrefix selects everything of one cluster in a scope. It ends in a slash.
func ScopePrefix(scope Scope, cluster string) string {
	return Root + string(scope) + "/" + cluster + "/"
}

// KindPrefix selects everything of one kind of one cluster. It ends in a slash,
// so it selects nothing of KindCluster, whose one key is ClusterKey.
func KindPrefix(scope Scope, cluster string, kind Kind) string {
	return ScopePrefix(scope, cluster) + string(kind) + "/"
}

// ClusterKey is the key of a cluster's own record in a scope; in scope export
// it is the synced marker.
func ClusterKey(scope Scope, cluster string) string {
	return ScopePrefix(scope, cluster) + string(KindCluster)
}

// KeyOf is the key of a record of cluster in scope.
func KeyOf(scope Scope, cluster string, r Record) Key {
	return Key{Scope: scope, Cluster: cluster, Kind: r.Kind(), Name: r.KeyName()}
}

// ParseKey takes a key of the store apart. It accepts exactly what Key.String
// makes of a valid key; the error says which part is wrong.
func ParseKey(s string) (Key, error) {
	k, err := splitKey(s)
	if err != nil {
		return Key{}, fmt.Errorf("key %s: %w", quote(s), err)
	}
	if err := k.validate(); err != nil {
		return Key{}, fmt.Errorf("key %s: %w", quote(s), err)
	}
	return k, nil
}

// Validate reports the first part of k that no valid key has.
func (k Key) Validate() error {
	if err := k.validate(); err != nil {
		return fmt.Errorf("key %s: %w", quote(k.String()), err)
	}
	return nil
}

// splitKey only splits. Known scopes and kinds share their strings, the rest
// are substrings of s.
func splitKey(s string) (Key, error) {
	rest, ok := strings.CutPrefix(s, Root)
	if !ok {
		return Key{}, fmt.Errorf("does not begin with %s", Root)
	}
	if len(s) > maxKey {
		return Key{}, fmt.Errorf("%d bytes long; at most %d are allowed", len(s), maxKey)
	}
	scope, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return Key{}, errors.New("no cluster after the scope")
	}
	cluster, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return Key{}, errors.New("no kind after the cluster")
	}
	kind, name, ok := strings.Cut(rest, "/")
	if ok && name == "" {
		return Key{}, errors.New("ends in a slash")
	}
	return Key{Scope: Scope(scope), Cluster: cluster, Kind: Kind(kind), Name: name}, nil
}

func (k Key) validate() error {
	switch k.Scope {
	case ScopeExport, ScopeLocal, ScopeMirror:
	default:
		return fmt.Errorf("unknown scope %s; known are export, local, mirror", quote(string(k.Scope)))
	}
	if err := ValidateClusterName(k.Cluster); err != nil {
		return err
	}
	return validateName(k.Kind, k.Name)
}

// validateName checks the name part of a key of kind.
func validateName(kind Kind, name string) error {
	switch kind {
	case KindCluster:
		if name != "" {
			return errors.New("a cluster record has no name")
		}
		return nil
	case KindNode:
		return validateParts(name, 1, "<node>")
	case KindClusterPolicy:
		return validateParts(name, 1, "<name>")
	case KindService, KindPolicy, KindWorkload:
		return validateParts(name, 2, "<namespace>/<name>")
	case KindEndpointSlice:
		return validateParts(name, 3, "<namespace>/<service>/<slice>")
	case KindIdentity:
		_, err := parseIdentityName(name)
		return err
	case KindAddress:
		_, err := parseAddressName(name)
		return err
	case KindPeer:
		return ValidateClusterName(name)
	case KindDrain:
		_, _, err := ParseDrainName(name)
		return err
	}
	return fmt.Errorf("unknown kind %s", quote(string(kind)))
}

// ValidateClusterName reports why name cannot be a cluster's: a cluster name is
// a DNS label (lower-case letters, digits and hyphens, a letter or digit at both
// ends) of at most MaxClusterName bytes.
func ValidateClusterName(name string) error {
	if name == "" {
		return errors.New("cluster name is empty; give a DNS label such as aws-eu")
	}
	if len(name) > MaxClusterName {
		return fmt.Errorf("cluster name %s is %d bytes long; at most %d are allowed", quote(name), len(name), MaxClusterName)
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(name)-1:
		default:
			return fmt.Errorf("cluster name %s is not a DNS label (a–z, 0–9, hyphens inside)", quote(name))
		}
	}
	return nil
}

// validateParts checks that name has n parts, none empty.
func validateParts(name string, n int, form string) error {
	parts := 0
	for rest, more := name, true; more; parts++ {
		var part string
		part, rest, more = strings.Cut(rest, "/")
		if err := validatePart(part); err != nil {
			return err
		}
	}
	if parts != n {
		return fmt.Errorf("name %s has %d parts; it should be %s", quote(name), parts, form)
	}
	return nil
}

// validatePart checks one part of a name: printable, no spaces, no slashes, and
// not a dot or two, which people and tools read as directories.
func validatePart(part string) error {
	switch {
	case part == "":
		return errors.New("a part of the name is empty")
	case len(part) > maxName:
		return fmt.Errorf("a part of the name is %d bytes long; at most %d are allowed", len(part), maxName)
	case part == "." || part == "..":
		return fmt.Errorf("%s is no name", quote(part))
	}
	for i := range len(part) {
		c := part[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == ':':
		default:
			return fmt.Errorf("name %s has a character outside letters a–z A–Z, digits and -.:_ (all but these are refused)", quote(part))
		}
	}
	return nil
}

// parseIdentityName reads a canonical decimal: no sign, no leading zero.
func parseIdentityName(name string) (Identity, error) {
	n, err := strconv.ParseUint(name, 10, 32)
	if err != nil || (len(name) > 1 && name[0] == '0') || name[0] == '+' {
		return 0, fmt.Errorf("identity %s is not a decimal number of 32 bits", quote(name))
	}
	return Identity(n), nil
}

// parseAddressName reads <node>/<prefix>.
func parseAddressName(name string) (AddressName, error) {
	node, text, ok := strings.Cut(name, "/")
	if !ok {
		return AddressName{}, fmt.Errorf("name %s should be <node>/<prefix>", quote(name))
	}
	if err := validatePart(node); err != nil {
		return AddressName{}, err
	}
	prefix, err := ParseKeyPrefix(text)
	return AddressName{Node: node, Prefix: prefix}, err
}

// FormatKeyPrefix is a prefix as address keys spell it: 10.1.1.5 or fd00::5 for
// a single address, 10.1.0.0+16 for anything wider.
func FormatKeyPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.Addr().String() + "+" + strconv.Itoa(p.Bits())
}

// ParseKeyPrefix reads what FormatKeyPrefix writes and nothing else: host bits,
// zones, v4-mapped addresses and spellings that are not canonical are errors.
func ParseKeyPrefix(s string) (netip.Prefix, error) {
	text, bitsText, ranged := strings.Cut(s, "+")
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s is not an address or prefix (10.1.1.5, fd00::5, 10.1.0.0+16)", quote(s))
	}
	bits := addr.BitLen()
	if ranged {
		bits, err = strconv.Atoi(bitsText)
		if err != nil || bits < 0 || bits >= addr.BitLen() {
			return netip.Prefix{}, fmt.Errorf("%s has no valid prefix length after the plus sign", quote(s))
		}
	}
	p := netip.PrefixFrom(addr, bits)
	if p.Masked() != p {
		return netip.Prefix{}, fmt.Errorf("%s has bits set beyond its length; it should be %s", quote(s), FormatKeyPrefix(p.Masked()))
	}
	if !canonicalKeyPrefix(p, s) {
		return netip.Prefix{}, fmt.Errorf("%s should be spelt %s", quote(s), FormatKeyPrefix(p))
	}
	return p, nil
}

// canonicalKeyPrefix is FormatKeyPrefix(p) == s without an allocation: there
// are tens of thousands of these in a list.
func canonicalKeyPrefix(p netip.Prefix, s string) bool {
	var buf [64]byte
	b := p.Addr().AppendTo(buf[:0])
	if !p.IsSingleIP() {
		b = append(b, '+')
		b = strconv.AppendInt(b, int64(p.Bits()), 10)
	}
	return string(b) == s
}

// quote makes foreign text safe to print: quoted, control characters and
// invalid UTF-8 escaped, and cut at a length that still tells what it was.
func quote(s string) string {
	const most = 120
	if len(s) > most {
		cut := most
		for cut > most-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
			cut--
		}
		return strconv.QuoteToASCII(s[:cut]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
