package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// TrafficPolicies are what the local Service says of where its traffic may go.
type TrafficPolicies struct {
	External               string   `json:"external"` // Cluster or Local: from outside
	Internal               string   `json:"internal"` // Cluster or Local: to the ClusterIP
	Distribution           string   `json:"distribution,omitempty"`
	SessionAffinitySeconds uint32   `json:"sessionAffinitySeconds,omitempty"`
	SourceRanges           []string `json:"sourceRanges,omitempty"` // who may dial load balancer addresses
	HealthCheckPort        uint16   `json:"healthCheckPort,omitempty"`
	HealthCheckEndpoints   int      `json:"healthCheckEndpoints,omitempty"` // what this node answers there
}

// FrontendExplanation is an address that clients dial, and which backends those
// on this node and those outside reach by it.
type FrontendExplanation struct {
	Address string `json:"address"`
	Kind    string `json:"kind"`
	Inside  string `json:"inside"`            // all or here
	Outside string `json:"outside,omitempty"` // all or here; "" = not reached from outside
	Ranges  bool   `json:"ranges,omitempty"`  // the source ranges hold for it
	HeldBy  string `json:"heldBy,omitempty"`  // who has it instead
}

func policyName(local bool) string {
	if local {
		return "Local"
	}
	return "Cluster"
}

func (a *Agent) explainTraffic(m clustermesh.Merged) TrafficPolicies {
	t := TrafficPolicies{External: policyName(m.ExternalLocal), Internal: policyName(m.InternalLocal), Distribution: m.Distribution.String(),
		SessionAffinitySeconds: affinitySeconds(m.SessionAffinity)}
	for _, p := range m.SourceRanges {
		t.SourceRanges = append(t.SourceRanges, p.String())
	}
	if h := healthPort(m, a.state.at); h.Port != 0 {
		t.HealthCheckPort, t.HealthCheckEndpoints = h.Port, h.Endpoints
	}
	return t
}

// listedFrontends are the frontends of a port for a list: node ports once, as
// they are the same on every node.
func listedFrontends(p clustermesh.MergedPort) (out []string) {
	for _, f := range p.Frontends {
		out = append(out, frontendText(p, f.String()))
	}
	for _, e := range p.External {
		out = append(out, frontendText(p, e.Address.String()))
	}
	if p.Port.NodePort != 0 {
		host := "0.0.0.0"
		if p.V6 {
			host = "[::]"
		}
		out = append(out, fmt.Sprintf("%s:%d/%s", host, p.Port.NodePort, protocolName(uint8(p.Port.Protocol))))
	}
	return out
}

// explainFrontends are those of one port, in the order of rows, and whether all
// of them are in the kernel as wanted.
func (a *Agent) explainFrontends(name clustermesh.ServiceName, p clustermesh.MergedPort, rows serviceRows) (out []FrontendExplanation, inKernel bool) {
	all := ServiceID(name, p.Port.Name, p.Port.Protocol, p.V6)
	here := localServiceID(name, p.Port.Name, p.Port.Protocol, p.V6)
	out, inKernel = []FrontendExplanation{}, true
	for i, k := range rows.keys {
		row := rows.rows[i]
		if row.ID != all && row.ID != here {
			continue
		}
		want, ok := a.state.t.services.Wanted(k)
		have, is := a.state.t.services.Actual(k)
		inKernel = inKernel && ok && is && want == have
		behind := "all"
		if row.ID == here {
			behind = "here"
		}
		inside := k
		inside.Scope = ScopeInside
		at := slices.IndexFunc(out, func(f FrontendExplanation) bool { return f.Address == inside.String() })
		if at < 0 {
			at = len(out)
			out = append(out, FrontendExplanation{Address: inside.String(), Kind: rows.kinds[i].String()})
		}
		f := &out[at]
		if k.Scope == ScopeOutside {
			f.Outside, f.Ranges = behind, row.Flags&ServiceRanges != 0
		} else {
			f.Inside = behind
		}
		if holder, taken := a.state.frontends[k]; taken && holder.name != name {
			f.HeldBy = holder.String()
		}
	}
	return out, inKernel
}

// unusedBy is why a topology leaves a backend out.
func unusedBy(t Topology, b clustermesh.Backend) string {
	if t == TopologyNode {
		return "its hints mean it for other nodes"
	}
	return "its hints mean it for zone " + Escape(strings.Join(b.Hints.Zones(), ", "))
}

// localInForce reports whether any frontend leads to this node's backends alone.
func localInForce(exposed []FrontendExplanation) bool {
	return slices.ContainsFunc(exposed, func(f FrontendExplanation) bool { return f.Inside == "here" || f.Outside == "here" })
}

func tierBackends(tiers []clustermesh.Tier) (out []clustermesh.Backend) {
	for _, t := range tiers {
		for _, g := range t.Groups {
			out = append(out, g.Backends...)
		}
	}
	return out
}

// explainIdle are the endpoints of this cluster that are not among those used.
func (a *Agent) explainIdle(name clustermesh.ServiceName, p clustermesh.MergedPort, own clustermesh.Group, uses []clustermesh.Backend, report healthReport) (out []BackendExplanation) {
	used := map[netip.AddrPort]bool{}
	for _, b := range uses {
		used[netip.AddrPortFrom(b.Address, b.Port)] = true
	}
	for _, v := range a.state.clusters[a.state.own].views {
		if v == nil {
			continue
		}
		for slice := range v.Slices(name) {
			for _, q := range slice.Ports {
				if q.Name != p.Port.Name || q.Protocol != p.Port.Protocol {
					continue
				}
				for _, e := range slice.Endpoints {
					at := netip.AddrPortFrom(e.Address, q.Port)
					if e.Address.Is6() != p.V6 || used[at] {
						continue
					}
					used[at] = true
					x := a.explainBackend(own, clustermesh.Backend{Address: e.Address, Port: q.Port, Node: e.Node, Terminating: e.Terminating}, report)
					x.Unused = idleBecause(e)
					out = append(out, x)
				}
			}
		}
	}
	slices.SortFunc(out, func(x, y BackendExplanation) int { return cmp.Compare(x.Address, y.Address) })
	return out
}

func idleBecause(e clustermesh.Endpoint) string {
	switch {
	case e.Terminating && e.Serving:
		return "terminating: it serves new connections only where no other endpoint is ready"
	case e.Terminating:
		return "terminating, and it does not serve any more"
	case !e.Ready:
		return "not ready"
	}
	return "its cluster takes no traffic"
}

func (a *Agent) explainPort(name clustermesh.ServiceName, p clustermesh.MergedPort, rows serviceRows, report healthReport) PortExplanation {
	out := PortExplanation{
		Name: p.Port.Name, Protocol: protocolName(uint8(p.Port.Protocol)), InKernel: true,
		ID: fmt.Sprintf("%016x", ServiceID(name, p.Port.Name, p.Port.Protocol, p.V6)), Frontends: []string{}, Tiers: []TierExplanation{},
	}
	// What is to be merged again has no wanted rows yet that could be compared.
	if _, pending := a.state.dirty[name]; pending {
		out.InKernel = false
	}
	for _, f := range p.Frontends {
		out.Frontends = append(out.Frontends, frontendText(p, f.String()))
	}
	var inKernel bool
	out.Exposed, inKernel = a.explainFrontends(name, p, rows)
	out.InKernel = out.InKernel && inKernel
	_, topology := nearTiers(p.Tiers, a.state.at)
	out.Topology = string(topology)
	for _, t := range p.Tiers {
		tier := TierExplanation{SharePercent: float64(t.Share) * 100 / 65535}
		for _, g := range t.Groups {
			group := GroupExplanation{Cluster: g.Cluster, ID: g.ID, Weight: g.Weight, Backends: []BackendExplanation{}}
			_, group.Down = report.Clusters[ClusterKey(g.ID)]
			for _, b := range g.Backends {
				e := a.explainBackend(g, b, report)
				if g.ID == a.state.ownID && !topology.meantFor(b, a.state.at) {
					e.Unused = unusedBy(topology, b)
				}
				group.Backends = append(group.Backends, e)
			}
			tier.Groups = append(tier.Groups, group)
		}
		out.Tiers = append(out.Tiers, tier)
	}
	own := clustermesh.Group{Cluster: a.state.own, ID: a.state.ownID}
	used := tierBackends(p.Tiers)
	if localInForce(out.Exposed) {
		here := tierBackends(hereTiers(a.state.own, p.Local, a.state.at))
		for _, b := range here {
			out.Here = append(out.Here, a.explainBackend(own, b, report))
		}
		used = append(used, here...)
	}
	out.Idle = a.explainIdle(name, p, own, used, report)
	return out
}

func (a *Agent) explainBackend(g clustermesh.Group, b clustermesh.Backend, report healthReport) BackendExplanation {
	out := BackendExplanation{Address: hostPort(MakeAddr(b.Address), b.Port), Terminating: b.Terminating}
	if c := a.state.clusters[g.Cluster]; c != nil && c.export() != nil {
		if n := c.export().NodeByNumber(b.Node); n != nil {
			out.Node = n.Name
		}
	}
	_, out.NodeDown = report.Nodes[NodeKey{uint16(g.ID), b.Node}]
	return out
}
