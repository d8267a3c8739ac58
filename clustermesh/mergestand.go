package clustermesh

// drainedRank is the rank of clusters that are drained: after all others.
const drainedRank = MaxTiers

// standing is where a member stands for one port.
type standing struct {
	rank   int
	weight uint16
	left   uint16 // of the weight, if that is above 0
	counts bool   // among the healthy of its tier
}

func (in *MergeInput) left(cluster string) uint16 {
	if in.Left == nil {
		return ShareAll
	}
	return in.Left(cluster)
}

// standMembers says where each member stands. Of those that have backends, one
// that is not drained always comes before one that is; where all are, nobody is:
// draining moves traffic, it does not refuse it.
func standMembers(out []standing, members []member, finds []found) []standing {
	weighty, zeros, drained := false, false, false
	for i, m := range members {
		switch {
		case len(finds[i].ready) == 0:
		case m.left == 0:
			drained = true
		case m.weight == 0:
			zeros = true
		default:
			weighty = true
		}
	}
	last := -1 // last tier in which a cluster of a weight above 0 has a backend
	for i, m := range members {
		p := standing{rank: m.rank, weight: m.weight, left: m.left, counts: true}
		switch {
		case !weighty && !zeros:
			p.left = ShareAll
		case m.left == 0:
			p.rank, p.weight, p.counts = drainedRank, 0, false
		case !weighty && drained && m.weight == 0:
			p.weight = 1 // all there is but for the drained, which have weight 0
		}
		if p.weight > 0 && len(finds[i].ready) > 0 {
			last = max(last, p.rank)
		}
		out = append(out, p)
	}
	for i := range out {
		// Weight 0 is never drawn as long as another is: it goes to the end.
		if p := &out[i]; p.weight == 0 && p.rank != drainedRank && last >= 0 {
			p.rank, p.counts = last, false
		}
	}
	return out
}

// scaleWeights gives the groups of a tier the part of their weights that is left,
// and returns how much of the tier's traffic stays in it: as much as the group has
// that has most. Weights change only where some have less than others.
func scaleWeights(groups []Group, left []uint16) (most uint16) {
	heaviest, least := uint16(0), uint16(ShareAll)
	for i, g := range groups {
		if g.Weight > 0 {
			heaviest, most, least = max(heaviest, g.Weight), max(most, left[i]), min(least, left[i])
		}
	}
	if heaviest == 0 {
		return ShareAll
	}
	if least == most {
		return most
	}
	scale := uint64(ShareAll / heaviest) // rounding moves as little as can be
	for i := range groups {
		if g := &groups[i]; g.Weight > 0 {
			g.Weight = uint16(max(uint64(g.Weight)*scale*uint64(left[i])/uint64(most), 1))
		}
	}
	return most
}
