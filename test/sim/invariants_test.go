package sim

import (
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// The invariants, by the names that failures have:
//
//	slots      no service row without its slots, at every single write
//	path       no ipcache row without its peer, at every single write
//	routes     no route into the tunnel without its blackhole, at every single write
//	scope      no record under export or local of another cluster than the store's
//	leader     what is published is written by the holder of the leader key alone
//	identity   an identity never outside its cluster's range, whatever a peer says
//	meaning    an address never has an identity that its pod never was
//	silence    what a cluster has had all the time leaves no kernel, whatever is dark,
//	           restarted, wiped or restored
//	backend    a service that always had a backend always has one
//	verdict    what is reached well is not judged down; what is cut off for long is;
//	           a dead control plane judges nobody
//	published  at rest a store says what its cluster's Kubernetes and nodes say
//	rest       at rest a kernel holds what a dumb recomputation from the stores gives
//	endless    no two undo each other's work without end
//	server     no mesh API server ends by itself
//
// check is what must hold at every moment of quiet; the rest is looked at with each
// write.
func (s *sim) check() {
	for _, c := range s.clusters {
		c.learn()
		c.checkScope()
		for _, n := range c.agents {
			for k, row := range n.services.Rows() {
				n.checkSlots(k, row)
			}
			n.checkPaths("no peer")
			for k, row := range n.ips.Rows() {
				n.checkIP(k, row)
			}
			n.checkVerdicts()
		}
	}
}

// checkScope: nothing of others is under a cluster's own prefixes, and nothing
// under theirs in its store.
func (c *cluster) checkScope() {
	for _, scope := range []clustermesh.Scope{export, local} {
		for key := range contentOf(c.store(), clustermesh.Root+string(scope)+"/") {
			if !strings.HasPrefix(key, clustermesh.ScopePrefix(scope, c.Name)) {
				c.s.fail("scope", "%s: its store has %s", c.Name, key)
			}
		}
	}
}

// wrong are the differences from what everything comes to at rest, with the name of
// the invariant; "" if there are none.
func (s *sim) wrong() (invariant, what string) {
	for _, c := range s.clusters {
		if got, want := c.published(); got != want {
			return "published", c.Name + ":\n" + diff(got, want)
		}
	}
	for _, c := range s.clusters {
		for _, n := range c.agents {
			want, err := n.expected()
			if err != nil {
				return "rest", n.name + ": " + err.Error()
			}
			if got := n.dump(); got != want {
				return "rest", n.name + ":\n" + diff(got, want)
			}
		}
	}
	return "", ""
}
