package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// End is one end of a connection, found.
type End struct {
	Kind        Kind // pod, node, host or world
	Name        string
	Cluster     string
	Namespace   string
	Pod, Node   string
	HostNetwork bool // a pod on the network of its node: the node, to policy
	Addresses   []netip.Addr
	Invented    bool // the addresses are none of its own: it has none yet
	Identity    clustermesh.Identity
	Ports       []clustermesh.NamedPort
	Notes       []string // on how it was found
}

// policed: policy of its own cluster applies to it.
func (e *End) policed() bool { return e.Kind == KindPod && !e.HostNetwork }

func (e *End) party(a netip.Addr) policy.Party {
	return policy.Party{Name: e.Name, Address: a, Identity: e.Identity, Namespace: e.Namespace, Ports: e.Ports}
}

// World knows who is who.
type World interface {
	// Find finds an end. Its identity, where it is a node, is that of a node other
	// than the one the other end runs on.
	Find(Name) (*End, error)
	// Engine holds the policies of a cluster; nil: they are not known here.
	Engine(cluster string) *policy.Engine
}

// host is the node that a pod runs on, as that pod sees it.
func host(w World, of *End) (*End, error) {
	if of.Kind != KindPod {
		return nil, fmt.Errorf("host is the node that the other end runs on, and %s is no pod: say node/NAME", of.Name)
	}
	h := &End{Kind: KindHost, Name: "host", Cluster: of.Cluster, Node: of.Node, Identity: clustermesh.IdentityHost}
	if of.Node == "" {
		h.Notes = append(h.Notes, fmt.Sprintf("it is not said on which node %s runs", of.Name))
		return h, nil
	}
	h.Name = "host (node " + of.Node + ")"
	if n, err := w.Find(Name{Kind: KindNode, Cluster: of.Cluster, Name: of.Node}); err == nil {
		h.Addresses = n.Addresses
	}
	return h, nil
}

// ends finds both. A node is the host to pods that run on it.
func ends(w World, q Question) (from, to *End, err error) {
	names := [2]Name{}
	for i, text := range []string{q.From, q.To} {
		if names[i], err = ParseEnd(text); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", []string{"from", "to"}[i], err)
		}
	}
	found := [2]*End{}
	for i, n := range names {
		if n.Kind == KindHost {
			continue
		}
		if found[i], err = w.Find(n); err != nil {
			return nil, nil, err
		}
	}
	for i, n := range names {
		other := found[1-i]
		switch {
		case n.Kind != KindHost:
		case other == nil:
			return nil, nil, fmt.Errorf("host to host: a node and itself, of which policy knows nothing")
		default:
			if found[i], err = host(w, other); err != nil {
				return nil, nil, err
			}
		}
	}
	for i, e := range found {
		if other := found[1-i]; onNode(e) && other.policed() && other.Node != "" && e.Node == other.Node && e.Cluster == other.Cluster {
			e.Identity = clustermesh.IdentityHost
		}
	}
	return found[0], found[1], nil
}

func onNode(e *End) bool { return e.Kind == KindNode || e.Kind == KindPod && e.HostNetwork }

// pairs are the addresses by which the two ends can talk, one pair a family. An
// end that has none takes part as one without.
func pairs(from, to *End) [][2]netip.Addr {
	var out [][2]netip.Addr
	for _, is4 := range []bool{true, false} {
		family := func(a netip.Addr) bool { return a.Is4() == is4 }
		i, j := slices.IndexFunc(from.Addresses, family), slices.IndexFunc(to.Addresses, family)
		switch {
		case i >= 0 && j >= 0:
			out = append(out, [2]netip.Addr{from.Addresses[i], to.Addresses[j]})
		case i >= 0 && len(to.Addresses) == 0:
			out = append(out, [2]netip.Addr{from.Addresses[i], {}})
		case j >= 0 && len(from.Addresses) == 0:
			out = append(out, [2]netip.Addr{{}, to.Addresses[j]})
		}
	}
	if len(from.Addresses)+len(to.Addresses) == 0 {
		out = append(out, [2]netip.Addr{})
	}
	return out
}

// labelTexts are security labels for people: the pod's, then where it runs.
func labelTexts(labels map[string]string) (own, where []string) {
	for k, v := range labels {
		ns, ofNamespace := strings.CutPrefix(k, clustermesh.LabelNamespacePrefix)
		switch {
		case k == clustermesh.LabelCluster || k == clustermesh.LabelNamespace || k == clustermesh.LabelServiceAccount || ns == "kubernetes.io/metadata.name":
		case ofNamespace:
			where = append(where, ns+"="+v)
		default:
			own = append(own, k+"="+v)
		}
	}
	slices.Sort(own)
	slices.Sort(where)
	return own, where
}

// anywhere are addresses outside that only rules for (almost) all addresses
// contain: nobody has them.
var anywhere = []netip.Addr{netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("3fff::1")}

// Outside is an end that is neither pod nor node: at an address, or (invalid)
// anywhere.
func Outside(a netip.Addr) *End {
	e := &End{Kind: KindWorld, Name: "world", Identity: clustermesh.IdentityWorld, Addresses: anywhere, Invented: true}
	if a.IsValid() {
		e.Name, e.Addresses, e.Invented = a.String(), []netip.Addr{a}, false
	}
	return e
}
