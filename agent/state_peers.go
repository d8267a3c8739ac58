package agent

import (
	"fmt"
	"slices"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// SetPeers says which clusters are admitted, all of them. One that is no longer
// there, or has another ID, takes its rows along.
func (s *State) SetPeers(peers []*clustermesh.Peer) {
	slices.SortFunc(peers, func(a, b *clustermesh.Peer) int { return compareStrings(a.Name, b.Name) })
	wanted := map[string]*clustermesh.Peer{}
	ids := map[clustermesh.ID]string{s.ownID: s.own}
	for _, p := range peers {
		if other, twice := ids[p.ID]; twice || p.Name == s.own {
			s.problems["peer "+p.Name] = clustermesh.Problem{
				What: fmt.Sprintf("peer %s is not followed", p.Name),
				Why:  fmt.Sprintf("its cluster ID %d is that of cluster %s", p.ID, other),
				Fix:  "remove the peer and let it join again with an ID of its own",
			}
			continue
		}
		delete(s.problems, "peer "+p.Name)
		ids[p.ID] = p.Name
		wanted[p.Name] = p
	}
	for name, c := range s.clusters {
		if c.peer == nil {
			continue
		}
		if p := wanted[name]; p == nil || p.ID != c.id {
			s.removeCluster(c)
			delete(s.problems, "peer "+name)
		}
	}
	for name, p := range wanted {
		c := s.clusters[name]
		if c == nil {
			c = newClusterState(name, p.ID, p)
			s.clusters[name] = c
			delete(s.removed, c.id)
			s.setBlank(c)
			s.touchAll()
		}
		c.peer = p
	}
	s.planDirty, s.peersDirty = true, true
	s.release()
}

func (s *State) setBlank(c *clusterState) {
	if c.peer != nil && c.export() == nil {
		s.blank[c.id] = true
		return
	}
	delete(s.blank, c.id)
}

// removeCluster takes everything away that a cluster said.
func (s *State) removeCluster(c *clusterState) {
	if v := c.export(); v != nil {
		c.views = map[clustermesh.Scope]*clustermesh.View{}
		delete(s.exports, c.name)
		s.forgetView(c, v)
	}
	delete(s.blank, c.id)
	delete(s.clusters, c.name)
	s.removed[c.id] = true
	s.touchAll()
	s.planDirty, s.drains.dirty = true, true
}

// takePeers learns who the peers are, once this node itself is known as well:
// without it their routes would lack a source.
func (s *State) takePeers(own *clusterState) {
	if v := own.views[clustermesh.ScopeLocal]; v != nil && own.export() != nil {
		s.SetPeers(slices.Collect(v.Peers()))
	}
}
