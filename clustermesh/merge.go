package clustermesh

import (
	"net/netip"
	"time"
)

// MergeInput is everything Merge looks at.
type MergeInput struct {
	Name  ServiceName
	Local string // name of the client's cluster
	// Views are the clusters' export views by cluster name, the client's own
	// included. A cluster that is absent has no backends.
	Views map[string]*View
	// Home is the view of the client's own cluster in scope local (services
	// that are not global or not shared); may be nil.
	Home *View
}

// Merged is one service as the client's cluster should see it. It depends on
// the input's content alone.
type Merged struct {
	Name            ServiceName
	Found           bool // the client's cluster has such a service; false: no frontends, no ports
	Global          bool
	Headless        bool
	SessionAffinity time.Duration // 0 = none
	// Ports, by position of the local Service's ports; IPv4 before IPv6. A
	// family without frontends has no entry.
	Ports []MergedPort
	// Clusters says for each cluster why it does or does not take traffic, by name.
	Clusters []Why
	// Notes are settings that were skipped or refused, in words.
	Notes []string
}

// MergedPort is one port of one address family: where connections to
// Frontends:Port.Port (or to NodePort) go.
type MergedPort struct {
	Port      Port // of the local Service
	V6        bool
	Frontends []netip.Addr
	Tiers     []Tier
}

// Tier is a set of groups that is tried before the next one. Share is how much
// of the traffic that reaches it stays in it, in 1/65535; the last tier keeps all.
type Tier struct {
	Share  uint16
	Groups []Group
}

// Group is one cluster's backends.
type Group struct {
	Cluster  string
	ID       ID
	Weight   uint16 // 0 = never drawn, except when it is all there is
	Backends []Backend
}

// Backend answers for a service.
type Backend struct {
	Address     netip.Addr
	Port        uint16
	Node        uint16 // node number in its cluster
	Zone        string
	Terminating bool // serves while it ends, taken because nothing else is left
}

// Why explains one cluster's part in a service.
type Why struct {
	Cluster string
	ID      ID
	Tier    int // from 0; -1: in none
	Weight  uint16
	Healthy int    // backends that are ready, over all ports' addresses
	Total   int    // endpoints known
	Reason  string // why this tier, or why excluded
}

// Merge joins the services of one name.
func Merge(in MergeInput) Merged { return Merged{Name: in.Name} }
