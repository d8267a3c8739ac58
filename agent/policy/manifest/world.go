package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/agent/policy/trace"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Cluster is a folder with the name of the cluster that it stands for.
type Cluster struct {
	Name   string
	Folder *Folder
}

// World is clusters made of folders: a trace.World. Like the engines in it, it is
// for one goroutine; for more, make more.
type World struct {
	clusters []*cluster
	byName   map[string]*cluster
	pods     map[string][]*trace.End // by namespace/name, in the order of clusters
	byAddr   map[netip.Addr]*trace.End
	taken    map[netip.Addr]bool
	six      bool // there is no IPv4 in the folders
}

type cluster struct {
	name   string
	id     clustermesh.ID
	engine *policy.Engine
	pods   map[string]*trace.End // by namespace/name
	nodes  map[string]*trace.End
}

// NewWorld makes one. all: selectors that do not name a cluster select pods of
// every cluster. Numbers of identities are made up, alike for alike folders.
func NewWorld(clusters []Cluster, all bool) (*World, error) {
	w := &World{byName: map[string]*cluster{}, pods: map[string][]*trace.End{}, byAddr: map[netip.Addr]*trace.End{}, taken: map[netip.Addr]bool{}}
	for i, from := range clusters {
		if w.byName[from.Name] != nil {
			return nil, fmt.Errorf("cluster %s has two folders", from.Name)
		}
		id := clustermesh.ID(i + 1)
		c := &cluster{
			name: from.Name, id: id, engine: policy.New(policy.Options{Cluster: id, AllClusters: all}),
			pods: map[string]*trace.End{}, nodes: map[string]*trace.End{},
		}
		w.clusters, w.byName[from.Name] = append(w.clusters, c), c
		w.six = w.six || only6(from.Folder)
	}
	for i, from := range clusters {
		w.addNodes(w.clusters[i], from.Folder)
	}
	for i, from := range clusters {
		w.addPods(w.clusters[i], from.Folder)
	}
	for i, from := range clusters {
		w.invent(w.clusters[i], from.Folder)
		w.addPolicies(w.clusters[i], from.Folder)
	}
	return w, nil
}

// only6: every address that the folder has is IPv6.
func only6(f *Folder) bool {
	some := false
	for _, p := range f.Pods {
		for _, a := range p.Addresses {
			if some = true; a.Is4() {
				return false
			}
		}
	}
	for _, n := range f.Nodes {
		for _, p := range n.Prefixes {
			if some = true; p.Addr().Is4() {
				return false
			}
		}
	}
	return some
}

func (w *World) addNodes(c *cluster, f *Folder) {
	for _, n := range f.Nodes {
		c.nodes[n.Name] = &trace.End{Kind: trace.KindNode, Name: "node/" + n.Name, Cluster: c.name, Node: n.Name, Addresses: n.Addresses, Identity: clustermesh.IdentityRemoteNode}
		for _, a := range n.Addresses {
			w.byAddr[a], w.taken[a] = c.nodes[n.Name], true
		}
		labels := []clustermesh.Label{}
		for k, v := range n.Labels {
			labels = append(labels, clustermesh.Label{Key: k, Value: v})
		}
		slices.SortFunc(labels, func(a, b clustermesh.Label) int { return strings.Compare(a.Key, b.Key) })
		c.engine.SetNode(n.Name, policy.Node{Labels: labels, Addresses: n.Addresses})
	}
}

// addPods gives pods their identities. Label sets are numbered in the order of
// the pods' names.
func (w *World) addPods(c *cluster, f *Folder) {
	numbers := map[string]clustermesh.Identity{}
	for _, p := range f.Pods {
		e := &trace.End{
			Kind: trace.KindPod, Name: p.Namespace + "/" + p.Name, Cluster: c.name, Namespace: p.Namespace, Pod: p.Name, Node: p.Node,
			HostNetwork: p.HostNetwork, Addresses: p.Addresses, Ports: p.Ports,
		}
		c.pods[e.Name] = e
		w.pods[e.Name] = append(w.pods[e.Name], e)
		if len(w.clusters) > 1 {
			e.Name = c.name + "/" + e.Name
		}
		if p.Of != "" {
			e.Notes = append(e.Notes, fmt.Sprintf("%s stands for the pods of a %s", e.Name, p.Of))
		}
		if p.HostNetwork {
			e.Identity = clustermesh.IdentityRemoteNode
			if n := c.nodes[p.Node]; n != nil && len(e.Addresses) == 0 {
				e.Addresses = n.Addresses
			}
			for _, a := range e.Addresses {
				if w.byAddr[a] == nil {
					w.byAddr[a], w.taken[a] = e, true
				}
			}
			continue
		}
		for _, a := range p.Addresses {
			if other := w.byAddr[a]; other != nil {
				e.Notes = append(e.Notes, fmt.Sprintf("%s has the address of %s, too", e.Name, other.Name))
				continue
			}
			w.byAddr[a], w.taken[a] = e, true
		}
		labels := clustermesh.SecurityLabels(c.name, p.Namespace, p.ServiceAccount, p.Labels, f.Namespaces[p.Namespace])
		text := fmt.Sprint(labels)
		id, ok := numbers[text]
		if !ok {
			id = clustermesh.MakeIdentity(c.id, uint32(len(numbers)+1))
			numbers[text] = id
			for _, other := range w.clusters {
				other.engine.SetIdentity(id, labels)
			}
		}
		e.Identity = id
		c.engine.SetPod(e.Name, policy.Pod{Namespace: p.Namespace, Identity: id, Ports: p.Ports})
	}
}

// invent gives pods without an address one: of their node's prefix where that is
// known, else one of a range that nobody has, so that rules for all addresses
// match it and rules for particular ones do not. It comes after all pods are
// there: no address that a folder names is given twice.
func (w *World) invent(c *cluster, f *Folder) {
	prefixes := map[string][]netip.Prefix{}
	for _, n := range f.Nodes {
		prefixes[n.Name] = n.Prefixes
	}
	for _, p := range f.Pods {
		e := c.pods[p.Namespace+"/"+p.Name]
		if len(e.Addresses) > 0 || p.HostNetwork {
			continue
		}
		from := prefixes[p.Node]
		if len(from) == 0 {
			from = nowhere(w.six)
		}
		for _, prefix := range from {
			if a, ok := w.free(prefix, c.name+"/"+p.Namespace+"/"+p.Name); ok {
				e.Addresses, e.Invented = append(e.Addresses, a), true
			}
		}
	}
}

// nowhere are ranges without hosts: reserved, and for documentation.
func nowhere(six bool) []netip.Prefix {
	if six {
		return []netip.Prefix{netip.MustParsePrefix("3fff::/20")}
	}
	return []netip.Prefix{netip.MustParsePrefix("240.0.0.0/4")}
}

// free is an address of a prefix, near the one that a name hashes to.
func (w *World) free(p netip.Prefix, name string) (netip.Addr, bool) {
	h := fnv.New64a()
	h.Write([]byte(name))
	b := p.Masked().Addr().As16()
	low := binary.BigEndian.Uint64(b[8:])
	room := uint64(1)<<min(p.Addr().BitLen()-p.Bits(), 63) - 1
	for i := range uint64(1 << 16) {
		binary.BigEndian.PutUint64(b[8:], low|(h.Sum64()+i)&room)
		a := netip.AddrFrom16(b).Unmap()
		if !w.taken[a] && a != p.Masked().Addr() && p.Contains(a) {
			w.taken[a] = true
			return a, true
		}
		if i == room {
			break
		}
	}
	return netip.Addr{}, false
}

func (w *World) addPolicies(c *cluster, f *Folder) {
	for _, p := range f.Policies {
		c.engine.SetPolicy(policy.Name{Namespace: p.Namespace, Name: p.Name}, p.JSON)
	}
}

// Engine implements trace.World.
func (w *World) Engine(name string) *policy.Engine {
	if c := w.byName[name]; c != nil {
		return c.engine
	}
	return nil
}

// Find implements trace.World. The end is the caller's.
func (w *World) Find(n trace.Name) (*trace.End, error) {
	switch n.Kind {
	case trace.KindWorld:
		return trace.Outside(netip.Addr{}), nil
	case trace.KindAddress:
		if e := w.byAddr[n.Address]; e != nil {
			return only(e, n.Address), nil
		}
		return trace.Outside(n.Address), nil
	case trace.KindNode:
		return w.node(n)
	case trace.KindPod:
		return w.pod(n)
	}
	return nil, fmt.Errorf("%s %s is not in the folder", n.Kind, n.Name)
}

// only is an end as reached by one of its addresses.
func only(e *trace.End, a netip.Addr) *trace.End {
	out := *e
	out.Addresses = []netip.Addr{a}
	return &out
}

func (w *World) node(n trace.Name) (*trace.End, error) {
	for _, c := range w.clusters {
		if e := c.nodes[n.Name]; e != nil && (n.Cluster == "" || n.Cluster == c.name) {
			out := *e
			return &out, nil
		}
	}
	return nil, fmt.Errorf("no manifest has a Node %s", n.Name)
}

func (w *World) pod(n trace.Name) (*trace.End, error) {
	at := n.Namespace + "/" + n.Name
	if n.Cluster != "" {
		c := w.byName[n.Cluster]
		if c == nil {
			return nil, fmt.Errorf("no folder stands for cluster %s: there are %s\nfix: -f %s=DIR adds it", n.Cluster, strings.Join(w.names(), ", "), n.Cluster)
		}
		if e := c.pods[at]; e != nil {
			out := *e
			return &out, nil
		}
		return nil, fmt.Errorf("cluster %s has no pod %s%s", n.Cluster, at, c.near(at))
	}
	if found := w.pods[at]; len(found) > 0 {
		out := *found[0] // the own cluster comes first
		return &out, nil
	}
	if len(w.clusters) == 0 {
		return nil, errors.New("there is no folder")
	}
	return nil, fmt.Errorf("no manifest has a pod %s%s", at, w.clusters[0].near(at))
}

func (w *World) names() []string {
	var out []string
	for _, c := range w.clusters {
		out = append(out, c.name)
	}
	return out
}

// near names pods that could have been meant: of the namespace, or all if few.
func (c *cluster) near(at string) string {
	namespace, _, _ := strings.Cut(at, "/")
	var of, all []string
	for name := range c.pods {
		if all = append(all, name); strings.HasPrefix(name, namespace+"/") {
			of = append(of, name)
		}
	}
	if of == nil {
		of = all
	}
	if len(of) == 0 || len(of) > 12 {
		return ""
	}
	slices.Sort(of)
	return "; there are " + strings.Join(of, ", ")
}

// Summaries are the policies of the first cluster.
func (w *World) Summaries() []policy.Summary { return w.clusters[0].engine.Policies() }

// Pods are the names of all pods: those of the first cluster as namespace/pod.
func (w *World) Pods() []string {
	var out []string
	for i, c := range w.clusters {
		for name := range c.pods {
			if i > 0 {
				name = c.name + "/" + name
			}
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
