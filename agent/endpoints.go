package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// States of an endpoint, as users know them.
const (
	EndpointCreating      = "creating"      // its link is there, its rows are not all in the kernel: nothing passes
	EndpointReady         = "ready"         // its rows and the policy in force are in the kernel
	EndpointRegenerating  = "regenerating"  // it works by rows that are about to change
	EndpointDisconnecting = "disconnecting" // the pod is gone, a row of it is not yet
)

var endpointStates = []string{EndpointCreating, EndpointReady, EndpointRegenerating, EndpointDisconnecting}

// unmanagedAfter is how long a pod that the cluster has placed here may take to be
// connected before it counts as somebody else's.
const unmanagedAfter = time.Minute

// EndpointStatus is one endpoint of this node.
type EndpointStatus struct {
	Namespace string       `json:"namespace,omitempty"`
	Name      string       `json:"name,omitempty"`
	UID       string       `json:"uid,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	State     string       `json:"state"`
}

// UnmanagedPod is a pod that the own cluster places on this node, with a network of
// its own that Tombolo has not made: neither policy nor encryption is Tombolo's.
type UnmanagedPod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// endpointStatus lists the endpoints of this node; owner goroutine.
func (a *Agent) endpointStatus() []EndpointStatus {
	s := a.state
	busy := s.policyDue() || !s.t.policySettled()
	out := []EndpointStatus{}
	for _, p := range s.pods {
		e := EndpointStatus{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Addresses: p.Addresses, State: EndpointReady}
		if busy {
			e.State = EndpointRegenerating
		}
		for _, addr := range p.Addresses {
			if _, there := s.t.endpoints.Actual(MakeAddr(addr)); !there {
				e.State = EndpointCreating
			}
		}
		out = append(out, e)
	}
	for k, rows := range s.t.endpoints.pending() {
		if addr := k.IP(); rows[1] == nil && s.podAddrs[addr] == "" {
			out = append(out, EndpointStatus{Addresses: []netip.Addr{addr}, State: EndpointDisconnecting})
		}
	}
	slices.SortFunc(out, func(x, y EndpointStatus) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name), cmp.Compare(x.UID, y.UID), slices.CompareFunc(x.Addresses, y.Addresses, netip.Addr.Compare))
	})
	return out
}

// unmanaged lists pods of the own cluster's records that are on this node without an
// endpoint of ours. A static pod's record has another UID than its sandbox, so a
// name does as well.
func (a *Agent) unmanaged(now time.Time) []UnmanagedPod {
	out := []UnmanagedPod{}
	if a.cfg.Pods == nil {
		return out
	}
	names := map[UnmanagedPod]bool{}
	for _, p := range a.state.pods {
		names[UnmanagedPod{p.Namespace, p.Name}] = true
	}
	list, _ := a.workloads()
	for _, w := range list {
		if _, ours := a.state.pods[w.Owner]; ours || w.HostNetwork || names[UnmanagedPod{w.Namespace, w.Name}] {
			continue
		}
		if now.Sub(w.Origin.Time()) >= unmanagedAfter {
			out = append(out, UnmanagedPod{Escape(w.Namespace), Escape(w.Name)})
		}
	}
	slices.SortFunc(out, func(x, y UnmanagedPod) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	return out
}
