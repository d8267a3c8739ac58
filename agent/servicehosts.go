package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Host ports are rows as those of services, of which each pod with host ports is
// one: in no namespace, so that nobody can give a service its name.
const hostPorts = "hostport/"

func hostPortName(workload clustermesh.ServiceName) clustermesh.ServiceName {
	return clustermesh.ServiceName{Name: hostPorts + workload.String()}
}

// hostPortOf is the pod whose host ports bear the name.
func hostPortOf(name clustermesh.ServiceName) (workload clustermesh.ServiceName, is bool) {
	if name.Namespace != "" {
		return clustermesh.ServiceName{}, false
	}
	rest, is := strings.CutPrefix(name.Name, hostPorts)
	workload.Namespace, workload.Name, _ = strings.Cut(rest, "/")
	return workload, is
}

// makeHostPortRows are the rows of a pod on this node: from inside and from
// outside, to the pod alone. Pure. The source is kept: the pod is here. These rows
// alone have ServiceKeepSource and not ServiceLocal, so that a process with no
// memory can tell them from those of services; see ownerHostPorts.
func makeHostPortRows(name clustermesh.ServiceName, w *clustermesh.Workload, addrs []netip.Addr, at vantage) serviceRows {
	b := rowBuilder{rowInput: rowInput{at: at}}
	if w.HostNetwork { // its ports are the node's without anybody's doing
		return b.serviceRows
	}
	for _, p := range w.HostPorts {
		if p.Address.IsValid() && !p.Address.IsUnspecified() && !slices.Contains(at.all, p.Address) {
			b.note = append(b.note, fmt.Sprintf("hostIP %s is no address of this node that others can reach", p.Address))
			continue
		}
		for _, a := range addrs {
			b.addHostPort(name, p, a)
		}
	}
	return b.serviceRows
}

func (b *rowBuilder) addHostPort(name clustermesh.ServiceName, p clustermesh.HostPort, pod netip.Addr) {
	var at []netip.Addr
	for _, a := range b.at.all {
		wanted := !p.Address.IsValid() || p.Address == a || p.Address.IsUnspecified() && p.Address.Is6() == a.Is6()
		if wanted && a.Is6() == pod.Is6() {
			at = append(at, a)
		}
	}
	if len(at) == 0 {
		return
	}
	port := strconv.Itoa(int(p.Port)) + "@"
	if p.Address.IsValid() {
		port += p.Address.String()
	}
	set := b.addSet(ServiceID(name, port, p.Protocol, pod.Is6()), &clustermesh.MergedPort{Port: clustermesh.Port{Protocol: p.Protocol}},
		[]clustermesh.Tier{{Share: clustermesh.ShareAll, Groups: []clustermesh.Group{{ID: b.at.cluster, Weight: 1,
			Backends: []clustermesh.Backend{{Address: pod, Port: p.ContainerPort, Node: b.at.number}}}}}})
	set.row.Flags = ServiceKeepSource
	for _, a := range at {
		b.addBoth(MakeAddr(a), p.Port, p.Protocol, kindHostPort, set, set)
	}
}

// isHostPort tells the rows of host ports.
func isHostPort(v ServiceRow) bool {
	return v.Flags&(ServiceKeepSource|ServiceLocal) == ServiceKeepSource
}

// hostPortRows are the rows of the pod's host ports, if it is here.
func (s *State) hostPortRows(name, workload clustermesh.ServiceName) serviceRows {
	w := s.hosting[workload]
	if w == nil {
		return serviceRows{}
	}
	var addrs []netip.Addr
	for _, a := range s.pods[w.Owner].Addresses {
		if s.podAddrs[a] == w.Owner {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return makeHostPortRows(name, w, addrs, s.at)
}

// takeWorkload notes a pod with host ports that is placed on this node.
func (s *State) takeWorkload(workload clustermesh.ServiceName) {
	v := s.clusters[s.own].views[clustermesh.ScopeLocal]
	var w *clustermesh.Workload
	if v != nil {
		w = v.Workload(workload)
	}
	if w != nil && w.Node == s.node && len(w.HostPorts) > 0 {
		s.hosting[workload] = w
	} else if s.hosting[workload] == nil {
		return
	} else {
		delete(s.hosting, workload)
	}
	s.touchService(hostPortName(workload))
}

// touchHostPorts has the host ports of all pods here computed again.
func (s *State) touchHostPorts() {
	for workload := range s.hosting {
		s.touchService(hostPortName(workload))
	}
}
