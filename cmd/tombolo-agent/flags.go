package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// dataplane is what flags say of the data plane, in the agent's terms.
func (o options) dataplane(cfg *agent.Config) error {
	switch o.encrypt {
	case "clusters":
	case "all":
		cfg.EncryptAll = true
	default:
		return fmt.Errorf("--encrypt %q: allowed are clusters, all", o.encrypt)
	}
	switch o.policyClusters {
	case "own":
	case "all":
		cfg.PolicyAllClusters = true
	default:
		return fmt.Errorf("--policy-clusters %q: allowed are own, all", o.policyClusters)
	}
	if o.cni.chained() {
		if cfg.EncryptAll {
			return fmt.Errorf("--encrypt all and --cni-mode=chained exclude each other: the other CNI carries what goes between this cluster's nodes; use its encryption")
		}
		if len(o.xdp) > 0 {
			return fmt.Errorf("--xdp and --cni-mode=chained exclude each other: node ports are kube-proxy's there")
		}
		cfg.Chained = true
	}
	cfg.Masquerade = o.masquerade && !cfg.Chained // else the other CNI does it, or not
	var err error
	if cfg.NATPorts, err = parsePorts(o.natPorts); err != nil {
		return fmt.Errorf("--nat-ports: %w", err)
	}
	cfg.NodePortAddresses, err = parsePrefixes(o.nodePortAddrs)
	return err
}

// leastNATPorts is a range that two busy pods do not exhaust at once.
const leastNATPorts = 256

func parsePorts(text string) (ports [2]uint16, err error) {
	first, last, ok := strings.Cut(text, "-")
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if !ok || err1 != nil || err2 != nil || a < 1024 || b < a {
		return ports, fmt.Errorf("%q: want FIRST-LAST, two ports from 1024 on, for example 61000-65535", text)
	}
	if b-a+1 < leastNATPorts {
		return ports, fmt.Errorf("%q: %d ports are too few, give at least %d", text, b-a+1, leastNATPorts)
	}
	return [2]uint16{uint16(a), uint16(b)}, nil
}

func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, fmt.Errorf("--nodeport-addresses %q: not a prefix like 192.0.2.0/24", t)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// checkNodePorts refuses prefixes that hold none of this node's addresses: with
// them no node port would answer, and nobody would know why.
func checkNodePorts(underlay []netip.Addr, prefixes []netip.Prefix) error {
	if len(prefixes) > 0 && len(nodePortAddresses(underlay, prefixes)) == 0 {
		return fmt.Errorf("--nodeport-addresses %v: none of this node's addresses %v is in them; correct the prefixes, or leave the flag out", prefixes, underlay)
	}
	return nil
}

// nodePortAddresses are those of the underlay's addresses that answer to node
// ports and health checks; no prefixes = all.
func nodePortAddresses(underlay []netip.Addr, prefixes []netip.Prefix) []netip.Addr {
	if len(prefixes) == 0 {
		return underlay
	}
	var out []netip.Addr
	for _, a := range underlay {
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, a)
		}
	}
	return out
}

func parseAddrs(texts []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil, fmt.Errorf("--underlay %q: not an IP address", t)
		}
		out = append(out, a.Unmap().WithZone(""))
	}
	return out, nil
}

// uplinkIndexes are the devices that --uplink names, or those of the underlay.
func uplinkIndexes(names []string, underlay []int) ([]int, error) {
	if len(names) == 0 {
		return underlay, nil
	}
	var out []int
	for _, name := range names {
		dev, err := net.InterfaceByName(name)
		if err != nil {
			return nil, fmt.Errorf("--uplink %s: this node has no such device", name)
		}
		out = append(out, dev.Index)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// parseXDP is, by device, whether XDP runs there in the generic mode.
func parseXDP(texts []string) (map[string]bool, error) {
	modes := make(map[string]bool)
	for _, t := range texts {
		name, mode, colon := strings.Cut(t, ":")
		if name == "" || colon && mode != "generic" {
			return nil, fmt.Errorf("--xdp %q: want DEVICE or DEVICE:generic", t)
		}
		if _, twice := modes[name]; twice {
			return nil, fmt.Errorf("--xdp %q: %s is named twice", t, name)
		}
		modes[name] = colon
	}
	return modes, nil
}

// mapSizes are those of this machine's memory, changed by what the user says.
func mapSizes(wishes []string) (bpf.Sizes, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return bpf.Sizes{}, fmt.Errorf("ask for this machine's memory: %w", err)
	}
	sizes := bpf.DefaultSizes(info.Totalram * uint64(info.Unit))
	for _, w := range wishes {
		if err := sizes.Set(w); err != nil {
			return bpf.Sizes{}, fmt.Errorf("--map-size: %w", err)
		}
	}
	return sizes, nil
}

// nowhere is the endpoint of a node that others cannot reach first.
const nowhere = "none"

// checkEndpoint refuses what no other node could send to.
func (o options) checkEndpoint() error {
	if o.endpoint == "" || o.endpoint == nowhere {
		return nil
	}
	if at, err := netip.ParseAddrPort(o.endpoint); err != nil || at.Port() == 0 || at.Addr().IsUnspecified() {
		return fmt.Errorf("--wireguard-endpoint %q: want an IP address and a port like 203.0.113.7:51820, or none", o.endpoint)
	}
	return nil
}

// reachedAt is the endpoint that this node registers, first being the underlay
// address that carries the tunnel.
func (o options) reachedAt(first netip.Addr) string {
	switch o.endpoint {
	case "":
		return netip.AddrPortFrom(first, uint16(o.port)).String()
	case nowhere:
		return ""
	}
	return o.endpoint
}
