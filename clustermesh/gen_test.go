package clustermesh

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"
)

// Generators of valid records, as wild as the codec allows.

var (
	genPart = rapid.StringMatching(`[a-z0-9]([-a-z0-9._:]{0,10}[a-z0-9])?`)
	genText = rapid.OneOf(genPart, rapid.Just(""), rapid.StringN(0, 20, 60))
	genName = rapid.Custom(func(t *rapid.T) ServiceName {
		return ServiceName{genPart.Draw(t, "namespace"), genPart.Draw(t, "name")}
	})
	genCluster  = rapid.StringMatching(`[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?`)
	genOrigin   = rapid.Custom(func(t *rapid.T) Origin { return Origin(rapid.Int64Range(0, 1<<60).Draw(t, "origin")) })
	genProtocol = rapid.SampledFrom([]Protocol{TCP, UDP, SCTP})
	genPort     = rapid.Uint16Range(1, 65535)
	genAddr4    = rapid.Custom(func(t *rapid.T) netip.Addr { return addr4(rapid.Uint32().Draw(t, "v4")) })
	genAddr6    = rapid.Custom(func(t *rapid.T) netip.Addr {
		b := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6"))
		b[0] = 0xfd
		return netip.AddrFrom16(b)
	})
	genAddr   = rapid.OneOf(genAddr4, genAddr6)
	genPrefix = rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := genAddr.Draw(t, "addr")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
	})
	genPorts = some1(rapid.Custom(func(t *rapid.T) Port {
		return Port{genPart.Draw(t, "port name"), genProtocol.Draw(t, "protocol"), genPort.Draw(t, "port"), rapid.Uint16().Draw(t, "node port")}
	}))
	genBytes = rapid.Custom(func(t *rapid.T) []byte {
		return emptyNil([]byte(strings.Repeat(genText.Draw(t, "text"), rapid.IntRange(0, 100).Draw(t, "times"))))
	})
)

// some1 is a short list; an empty one is nil, as the codec has it.
func some1[T any](g *rapid.Generator[T]) *rapid.Generator[[]T] {
	return rapid.Custom(func(t *rapid.T) []T { return emptyNil(rapid.SliceOfN(g, 0, 4).Draw(t, "list")) })
}

func emptyNil[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

func genSeconds(t *rapid.T, label string) time.Duration {
	return time.Duration(rapid.IntRange(0, 1<<20).Draw(t, label)) * time.Second
}

// genRecord draws a record of any kind.
var genRecord = rapid.Custom(func(t *rapid.T) Record {
	switch rapid.SampledFrom(Kinds).Draw(t, "kind") {
	case KindCluster:
		return &Cluster{
			Name: genCluster.Draw(t, "name"), ID: ID(rapid.IntRange(1, int(MaxID)).Draw(t, "id")), Incarnation: rapid.Uint64().Draw(t, "incarnation"),
			CABundle: genBytes.Draw(t, "ca"), MeshAddresses: some1(genText).Draw(t, "mesh"), PodPrefixes: some1(genPrefix).Draw(t, "pods"),
			Capabilities: some1(genText).Draw(t, "capabilities"), Version: genText.Draw(t, "version"), Topology: Topology(genText.Draw(t, "topology")), Origin: genOrigin.Draw(t, "origin"),
		}
	case KindNode:
		return drawNode(t)
	case KindService:
		return drawService(t)
	case KindEndpointSlice:
		return drawSlice(t)
	case KindIdentity:
		return &IdentityRecord{ID: Identity(rapid.Uint32().Draw(t, "id")), Labels: drawLabels(t), Origin: genOrigin.Draw(t, "origin")}
	case KindAddress:
		return drawAddress(t)
	case KindPolicy:
		n := genName.Draw(t, "name")
		return &Policy{Namespace: n.Namespace, Name: n.Name, JSON: genBytes.Draw(t, "json"), Origin: genOrigin.Draw(t, "origin")}
	case KindClusterPolicy:
		return &ClusterPolicy{Name: genPart.Draw(t, "name"), JSON: genBytes.Draw(t, "json"), Origin: genOrigin.Draw(t, "origin")}
	case KindWorkload:
		return drawWorkload(t)
	case KindDrain:
		d := &Drain{
			Cluster: genCluster.Draw(t, "cluster"), Start: Origin(rapid.Int64Range(1, 1<<60).Draw(t, "start")).Time(), Over: time.Duration(rapid.Int64Range(0, int64(MaxDrain)).Draw(t, "over")),
			From: rapid.Uint16().Draw(t, "from"), Back: rapid.Bool().Draw(t, "back"), By: genText.Draw(t, "by"), Origin: genOrigin.Draw(t, "origin"),
		}
		if rapid.Bool().Draw(t, "of a service") {
			d.Service = genName.Draw(t, "service")
		}
		return d
	}
	p := &Peer{
		Name: genCluster.Draw(t, "name"), ID: ID(rapid.IntRange(1, int(MaxID)).Draw(t, "id")), CABundle: genBytes.Draw(t, "ca"),
		MeshAddresses: some1(genText).Draw(t, "mesh"), PodPrefixes: some1(genPrefix).Draw(t, "pods"),
		MaxKeys: rapid.Uint64().Draw(t, "keys"), MaxBytes: rapid.Uint64().Draw(t, "bytes"), Origin: genOrigin.Draw(t, "origin"),
	}
	p.Joined = genOrigin.Draw(t, "joined").Time()
	return p
})

func drawNode(t *rapid.T) *Node {
	n := &Node{
		Name: genPart.Draw(t, "name"), Number: genPort.Draw(t, "number"), UnderlayAddresses: some1(genAddr).Draw(t, "underlay"),
		TunnelAddresses: some1(genAddr).Draw(t, "tunnel"), PodPrefixes: some1(genPrefix).Draw(t, "pods"),
		WireGuardEndpoint: genText.Draw(t, "endpoint"), WireGuardPort: rapid.Uint16().Draw(t, "port"), Gateway: rapid.Bool().Draw(t, "gateway"), Zone: genText.Draw(t, "zone"), Origin: genOrigin.Draw(t, "origin"),
	}
	if rapid.Bool().Draw(t, "registered") {
		copy(n.WireGuardKey[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
	}
	return n
}

func drawService(t *rapid.T) *Service {
	external := rapid.Custom(func(t *rapid.T) External {
		return External{genAddr.Draw(t, "address"), ExternalKind(rapid.Uint8Range(1, 3).Draw(t, "kind"))}
	})
	outside := &Outside{Addresses: some1(external).Draw(t, "external"), SourceRanges: some1(genPrefix).Draw(t, "ranges")}
	if len(outside.Addresses)+len(outside.SourceRanges) == 0 {
		outside = nil
	}
	ports := genPorts.Draw(t, "ports")
	return &Service{
		Export: drawExport(t, len(ports)), Import: rapid.SampledFrom([]string{"", "cart"}).Draw(t, "import"),
		Outside: outside, HealthCheckPort: rapid.Uint16().Draw(t, "health"),
		ExternalLocal: rapid.Bool().Draw(t, "external local"), InternalLocal: rapid.Bool().Draw(t, "internal local"), Distribution: Distribution(rapid.Uint8Range(0, 3).Draw(t, "distribution")),
		Name: genName.Draw(t, "name"), Ports: ports, Frontends: some1(genAddr).Draw(t, "frontends"),
		Global: rapid.Bool().Draw(t, "global"), Shared: rapid.Bool().Draw(t, "shared"), Weight: rapid.Uint16().Draw(t, "weight"), HasWeight: rapid.Bool().Draw(t, "has weight"),
		Affinity: Affinity(genText.Draw(t, "affinity")), Failover: some1(genText).Draw(t, "failover"), MinHealthy: genText.Draw(t, "min healthy"),
		SessionAffinity: genSeconds(t, "session"), Headless: rapid.Bool().Draw(t, "headless"), PublishNotReady: rapid.Bool().Draw(t, "not ready"), Origin: genOrigin.Draw(t, "origin"),
	}
}

func drawSlice(t *rapid.T) *EndpointSlice {
	family := rapid.SampledFrom([]*rapid.Generator[netip.Addr]{genAddr4, genAddr6}).Draw(t, "family")
	return &EndpointSlice{
		Name: SliceName{genName.Draw(t, "name"), genPart.Draw(t, "slice")}, Ports: genPorts.Draw(t, "ports"), Origin: genOrigin.Draw(t, "origin"),
		Endpoints: some1(rapid.Custom(func(t *rapid.T) Endpoint {
			return Endpoint{
				Address: family.Draw(t, "address"), Node: rapid.Uint16().Draw(t, "node"), Zone: genText.Draw(t, "zone"),
				Ready: rapid.Bool().Draw(t, "ready"), Serving: rapid.Bool().Draw(t, "serving"), Terminating: rapid.Bool().Draw(t, "terminating"), Hints: drawHints(t),
				Hostname: MakeHostname(rapid.SampledFrom([]string{"", "db-0", "web"}).Draw(t, "hostname")),
			}
		})).Draw(t, "endpoints"),
	}
}

func drawHints(t *rapid.T) Hints {
	zone := rapid.StringMatching(`[a-z0-9]([-A-Za-z0-9._]{0,10}[a-z0-9])?`)
	return MakeHints(rapid.SliceOfN(zone, 0, 2).Draw(t, "zones"), rapid.SliceOfN(genPort, 0, 2).Draw(t, "nodes"))
}

func drawExport(t *rapid.T, ports int) *Export {
	if !rapid.Bool().Draw(t, "exported") {
		return nil
	}
	return &Export{
		Created: genOrigin.Draw(t, "created"), IPv4: rapid.Bool().Draw(t, "IPv4"), IPv6: rapid.Bool().Draw(t, "IPv6"),
		AppProtocols:        emptyNil(rapid.SliceOfN(genText, 0, ports).Draw(t, "app protocols")),
		TrafficDistribution: genText.Draw(t, "distribution"), Labels: drawLabels(t), Annotations: drawLabels(t),
	}
}

func drawLabels(t *rapid.T) []Label {
	keys := rapid.SliceOfNDistinct(genPart, 0, 5, rapid.ID).Draw(t, "keys")
	slices.Sort(keys)
	var labels []Label
	for _, k := range keys {
		labels = append(labels, Label{k, genText.Draw(t, "value")})
	}
	return labels
}

func drawAddress(t *rapid.T) *Address {
	uuid := rapid.StringMatching(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	return &Address{
		Name: AddressName{genPart.Draw(t, "node"), genPrefix.Draw(t, "prefix")}, Identity: Identity(rapid.Uint32().Draw(t, "identity")),
		Owner: rapid.OneOf(uuid, genText).Draw(t, "owner"), Namespace: genText.Draw(t, "namespace"), Pod: genText.Draw(t, "pod"), Origin: genOrigin.Draw(t, "origin"),
		NamedPorts: some1(rapid.Custom(func(t *rapid.T) NamedPort {
			return NamedPort{genPart.Draw(t, "port name"), genProtocol.Draw(t, "protocol"), genPort.Draw(t, "port")}
		})).Draw(t, "named ports"),
	}
}

func drawWorkload(t *rapid.T) *Workload {
	n := genName.Draw(t, "name")
	w := &Workload{Namespace: n.Namespace, Name: n.Name, Node: genText.Draw(t, "node"), Owner: genText.Draw(t, "owner"), Origin: genOrigin.Draw(t, "origin")}
	w.HostNetwork = rapid.Bool().Draw(t, "host network")
	w.HostPorts = some1(rapid.Custom(func(t *rapid.T) HostPort {
		p := HostPort{Protocol: genProtocol.Draw(t, "protocol"), Port: genPort.Draw(t, "port"), ContainerPort: genPort.Draw(t, "container port")}
		if rapid.Bool().Draw(t, "on one address") {
			p.Address = genAddr.Draw(t, "address")
		}
		return p
	})).Draw(t, "host ports")
	if rapid.Bool().Draw(t, "probed") {
		w.Readiness = &Probe{
			Kind: "http", Port: genPort.Draw(t, "port"), Path: genText.Draw(t, "path"), Period: genSeconds(t, "period"), Timeout: genSeconds(t, "timeout"),
			InitialDelay: genSeconds(t, "delay"), SuccessThreshold: rapid.IntRange(0, 9).Draw(t, "success"), FailureThreshold: rapid.IntRange(0, 9).Draw(t, "failure"),
		}
	}
	return w
}
