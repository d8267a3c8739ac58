package clustermesh

import (
	"cmp"
	"slices"
)

// found is what one member has for one port of one family.
type found struct {
	ready  []Backend
	ending []Backend // serving while they terminate
	total  int       // endpoints that are not terminating
}

// mergePort makes the tiers of one port of one family. members are sorted.
func mergePort(in MergeInput, members []member, p Port, v6 bool, minHealthy MinHealthy) []Tier {
	var buf [8]found
	finds := buf[:0]
	ready := 0
	for i := range members {
		finds = append(finds, members[i].find(p, v6))
		ready += len(finds[i].ready)
	}
	if ready == 0 { // nothing else is left
		for i := range finds {
			finds[i].ready = finds[i].ending
			finds[i].total = max(finds[i].total, len(finds[i].ending))
		}
	}
	var places [8]standing
	stand := standMembers(places[:0], members, finds)
	var tiers []Tier
	health := make([]uint16, 0, MaxTiers)
	for rank := range drainedRank + 1 {
		var groups []Group
		var left []uint16 // of groups
		healthy, total := 0, 0
		for i, m := range members {
			if stand[i].rank != rank {
				continue
			}
			if stand[i].counts {
				healthy += in.healthy(m.id, finds[i].ready, minHealthy)
				total += finds[i].total
			}
			if len(finds[i].ready) > 0 {
				groups = append(groups, Group{Cluster: m.cluster, ID: m.id, Weight: stand[i].weight, Drained: rank == drainedRank, Backends: finds[i].ready})
				left = append(left, stand[i].left)
			}
		}
		switch most := scaleWeights(groups, left); {
		case len(groups) == 0:
		case len(tiers) == MaxTiers: // the drained: there is no room for a tier of theirs
			last := &tiers[MaxTiers-1]
			last.Groups = limitGroups(append(last.Groups, groups...), in.Local)
		default:
			tiers = append(tiers, Tier{Groups: limitGroups(groups, in.Local)})
			health = append(health, uint16(uint32(minHealthy.Share(healthy, total))*uint32(most)/ShareAll))
		}
	}
	setShares(tiers, health)
	return tiers
}

// healthy counts those that take their part. Where no number is asked for, one is
// as good as all: the next tier takes over by the rows of health.
func (in *MergeInput) healthy(id ID, ready []Backend, wanted MinHealthy) int {
	if in.Used == nil || wanted == (MinHealthy{}) {
		return len(ready)
	}
	n := 0
	for _, b := range ready {
		if in.Used(id, b) {
			n++
		}
	}
	return n
}

// located is an endpoint on its port.
type located struct {
	Endpoint
	port uint16
}

// find collects the member's backends for a port: sorted, each address once.
func (m *member) find(p Port, v6 bool) found {
	if m.imported && !m.service.Exposes(p.Name, p.Protocol, p.Port) {
		return found{}
	}
	var buf [16]located // most services are this small
	all := buf[:0]
	for _, s := range m.slices {
		i := slices.IndexFunc(s.Ports, func(q Port) bool { return q.Name == p.Name && q.Protocol == p.Protocol })
		if i < 0 || len(s.Endpoints) == 0 || s.Endpoints[0].Address.Is6() != v6 {
			continue
		}
		for _, e := range s.Endpoints {
			all = append(all, located{e, s.Ports[i].Port})
		}
	}
	// An endpoint that moves between slices is in both for a moment: the better
	// state of the two counts.
	slices.SortFunc(all, compareLocated)
	all = slices.CompactFunc(all, func(a, b located) bool { return a.Address == b.Address && a.port == b.port })
	var f found
	for i := range all {
		f.add(&all[i], m.service.PublishNotReady, len(all))
	}
	return f
}

// ending endpoints serve only where nothing else is left. One that terminates and
// is ready nevertheless is of a service that publishes whatever there is.
func (e *Endpoint) ending() bool { return e.Terminating && !e.Ready }

func (f *found) add(e *located, publishNotReady bool, most int) {
	b := Backend{Address: e.Address, Port: e.port, Node: e.Node, Zone: e.Zone, Terminating: e.ending(), Hints: e.Hints}
	switch {
	case e.ending() && e.Serving:
		f.ending = append(f.ending, b)
	case e.ending():
	default:
		f.total++
		if e.Ready || publishNotReady {
			if f.ready == nil {
				f.ready = make([]Backend, 0, most)
			}
			f.ready = append(f.ready, b)
		}
	}
}

// compareLocated orders by address and port, then the better state first; the
// rest only makes the choice among duplicates the same every time.
func compareLocated(a, b located) int {
	if c := a.Address.Compare(b.Address); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.port, b.port),
		order(a.ending(), b.ending()), order(!a.Ready, !b.Ready), order(!a.Serving, !b.Serving),
		cmp.Compare(a.Node, b.Node), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Hints.text(), b.Hints.text()))
}

// setShares divides the traffic among tiers by their health, in 1/65535: a tier
// takes what its health allows of what the tiers before it left. Where all
// together cannot take everything, each takes its part of the sum, so that an
// ill tier does not drown the next one, which is ill too. With S = min(65535,
// sum of all), a tier keeps
//
//	share = 65535 × its health / (S − health of the tiers before it)
//
// of what reaches it, at most all; the last one always all.
func setShares(tiers []Tier, health []uint16) {
	left := int64(0)
	for _, h := range health {
		left += int64(h)
	}
	left = min(left, ShareAll)
	for i := range tiers {
		h := int64(health[i])
		tiers[i].Share = ShareAll
		if i < len(tiers)-1 && h < left {
			tiers[i].Share = uint16(ShareAll * h / left)
		}
		left -= h
	}
}

// limitGroups keeps at most MaxGroupsPerTier groups: those with a weight before
// those without, the drained last, the local cluster first, then by name.
func limitGroups(groups []Group, local string) []Group {
	if len(groups) <= MaxGroupsPerTier {
		return groups
	}
	slices.SortStableFunc(groups, func(a, b Group) int {
		return cmp.Or(order(a.Drained, b.Drained), order(a.Weight == 0, b.Weight == 0), order(a.Cluster != local, b.Cluster != local))
	})
	groups = slices.Clip(groups[:MaxGroupsPerTier])
	slices.SortFunc(groups, func(a, b Group) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return groups
}

// order puts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
