package clustermesh

import (
	"fmt"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestMergeAgainstTwin merges random meshes and compares with twinMerge.
func TestMergeAgainstTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		names := []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(1, 5).Draw(rt, "clusters")]
		m := newMesh(t, names...)
		m.Explain = rapid.Bool().Draw(rt, "explain")
		for _, name := range names {
			if rapid.IntRange(0, 9).Draw(rt, "absent") > 0 {
				s := checkout()
				s.Ports = rapid.SampledFrom([][]Port{checkoutPorts, {{"http", TCP, 80, 0}, {"dns", UDP, 53, 0}}}).Draw(rt, "ports")
				s.Frontends = addresses(rapid.SampledFrom([]string{"172.20.0.1", "fd01::1"}).Draw(rt, "frontend"))
				s.Global, s.Shared = rapid.IntRange(0, 5).Draw(rt, "global") > 0, rapid.IntRange(0, 5).Draw(rt, "shared") > 0
				s.Weight, s.HasWeight = rapid.Uint16Range(0, 2).Draw(rt, "weight"), rapid.Bool().Draw(rt, "has weight")
				s.Affinity = rapid.SampledFrom([]Affinity{"", AffinityLocal, AffinityRemote, AffinityNone}).Draw(rt, "affinity")
				s.Failover = rapid.SampledFrom([][]string{nil, {"b"}, {"c", "b"}, {"x"}, {"a"}, {"b", "c", "d"}}).Draw(rt, "failover")
				s.MinHealthy = rapid.SampledFrom([]string{"", "2", "50%", "100%"}).Draw(rt, "min-healthy")
				s.ExternalLocal, s.InternalLocal = rapid.IntRange(0, 3).Draw(rt, "external local") == 0, rapid.IntRange(0, 3).Draw(rt, "internal local") == 0
				s.PublishNotReady = rapid.IntRange(0, 5).Draw(rt, "publish") == 0
				m.put(m.Views[name], s)
			}
			for i := range rapid.IntRange(0, 3).Draw(rt, "slices") {
				m.put(m.Views[name], drawEndpoints(rt, m.Name, clusterID(name), fmt.Sprintf("s%d", i)))
			}
		}
		if rapid.Bool().Draw(rt, "drains") {
			left := map[string]uint16{}
			for _, name := range names {
				left[name] = rapid.SampledFrom([]uint16{0, 0, ShareAll, ShareAll, 1, 13107, 40000}).Draw(rt, "left")
			}
			m.Left = func(cluster string) uint16 { return left[cluster] }
		}
		if out := uint16(rapid.IntRange(0, 4).Draw(rt, "out")); out > 0 {
			m.Used = func(_ ID, b Backend) bool { return b.Node != out }
		}
		got := Merge(m.MergeInput)
		if again := Merge(m.MergeInput); !reflect.DeepEqual(got, again) {
			rt.Fatalf("two merges of one input differ:\n%+v\n%+v", got, again)
		}
		checkLimits(rt, got)
		if a, b := showAll(got.Ports), showAll(twinMerge(m.MergeInput)); a != b {
			rt.Fatalf("merged\n%s\ntwin\n%s", a, b)
		}
	})
}

func drawEndpoints(t *rapid.T, name ServiceName, id ID, slice string) *EndpointSlice {
	s := &EndpointSlice{Name: SliceName{name, slice}, Ports: rapid.SampledFrom([][]Port{
		{{"http", TCP, 8080, 0}}, {{"http", TCP, 8080, 0}, {"dns", UDP, 5353, 0}}, {{"http", UDP, 1, 0}},
	}).Draw(t, "ports")}
	v6 := rapid.IntRange(0, 3).Draw(t, "v6") == 0
	for range rapid.IntRange(0, 4).Draw(t, "endpoints") {
		n := rapid.Uint32Range(1, 4).Draw(t, "address")
		e := Endpoint{Address: addr4(10<<24 | uint32(id)<<16 | n), Node: uint16(n), Ready: rapid.Bool().Draw(t, "ready"), Serving: rapid.Bool().Draw(t, "serving")}
		if n > 1 {
			e.Hints = MakeHints([]string{fmt.Sprintf("zone-%d", n)}, nil)
		}
		e.Terminating = rapid.IntRange(0, 3).Draw(t, "terminating") == 0
		if v6 {
			e.Address = netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", id, n))
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func checkLimits(t *rapid.T, m Merged) {
	for _, p := range m.Ports {
		seen := map[string]bool{}
		if len(p.Tiers) > MaxTiers {
			t.Fatalf("%d tiers", len(p.Tiers))
		}
		for i, tier := range p.Tiers {
			if len(tier.Groups) == 0 || len(tier.Groups) > MaxGroupsPerTier || i == len(p.Tiers)-1 && tier.Share != ShareAll {
				t.Fatalf("tier %d: %+v", i, tier)
			}
			for _, g := range tier.Groups {
				if seen[g.Cluster] || len(g.Backends) == 0 {
					t.Fatalf("cluster %s: twice, or empty", g.Cluster)
				}
				seen[g.Cluster] = true
			}
		}
		if len(seen) > MaxGroups {
			t.Fatalf("%d groups", len(seen))
		}
	}
}

func showAll(ports []MergedPort) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "%s %v %v own %v\n", describePort(p.Port), p.V6, p.Frontends, p.Local)
		for _, tier := range p.Tiers {
			fmt.Fprintf(&b, "  tier %d\n", tier.Share)
			for _, g := range tier.Groups {
				fmt.Fprintf(&b, "    %s %d *%d drained %v", g.Cluster, g.ID, g.Weight, g.Drained)
				for _, x := range g.Backends {
					fmt.Fprintf(&b, " %v", x)
				}
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// twinMerge is Merge, slow and obvious: the settings are read as sentences, and
// every question is answered by going through all endpoints again.
func twinMerge(in MergeInput) []MergedPort {
	own := in.Views[in.Local].Service(in.Name)
	if own == nil {
		return nil
	}
	var order [][]string // clusters tier by tier
	var others, named []string
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		if name != in.Local && in.Views[name] != nil {
			others = append(others, name)
		}
	}
	if len(own.Failover) <= 2 {
		for _, name := range own.Failover {
			if slices.Contains(others, name) {
				named = append(named, name)
			}
		}
	}
	rest := slices.DeleteFunc(slices.Clone(others), func(s string) bool { return slices.Contains(named, s) })
	local := []string{in.Local}
	var one [][]string
	for _, name := range named {
		one = append(one, []string{name})
	}
	switch {
	case own.Affinity == AffinityLocal, own.Affinity == "" && len(own.Failover) > 0:
		order = append(append([][]string{local}, one...), rest)
	case own.Affinity == AffinityRemote:
		order = append(one, rest, local)
	default:
		order = append([][]string{append(local, rest...)}, one...)
	}
	var out []MergedPort
	for _, p := range own.Ports {
		v6 := own.Frontends[0].Is6()
		out = append(out, MergedPort{Port: p, V6: v6, Frontends: own.Frontends, Tiers: twinPort(in, own, order, p, v6), Local: twinLocal(in, own, p, v6)})
	}
	return out
}

// twinLocal are the own cluster's endpoints that can serve.
func twinLocal(in MergeInput, own *Service, p Port, v6 bool) []Backend {
	var list []Backend
	if !own.ExternalLocal && !own.InternalLocal {
		return nil
	}
	for _, e := range twinEndpoints(in, own, in.Local, p, v6) {
		if e.Ready || e.Terminating && e.Serving || !e.Terminating && own.PublishNotReady {
			list = append(list, Backend{Address: e.Address, Port: e.port, Node: e.Node, Zone: e.Zone, Terminating: e.Terminating && !e.Ready, Hints: e.Hints})
		}
	}
	slices.SortFunc(list, func(a, b Backend) int { return a.Address.Compare(b.Address) })
	return list
}

// twinEndpoints are a cluster's endpoints of a port by address, the better state of duplicates.
func twinEndpoints(in MergeInput, own *Service, cluster string, p Port, v6 bool) map[netip.Addr]located {
	s := in.Views[cluster].Service(in.Name)
	if cluster != in.Local && (s == nil || !own.Global || !s.Global || !s.Shared) {
		return nil
	}
	score := func(e located) int {
		n := 0
		if !e.Terminating || e.Ready {
			n += 4
		}
		if e.Ready {
			n += 2
		}
		if e.Serving {
			n++
		}
		return n
	}
	all := map[netip.Addr]located{}
	for slice := range in.Views[cluster].Slices(in.Name) {
		for _, q := range slice.Ports {
			if q.Name != p.Name || q.Protocol != p.Protocol {
				continue
			}
			for _, e := range slice.Endpoints {
				if old, ok := all[e.Address]; e.Address.Is6() == v6 && (!ok || score(located{e, 0}) > score(old)) {
					all[e.Address] = located{e, q.Port}
				}
			}
		}
	}
	return all
}

func twinPort(in MergeInput, own *Service, order [][]string, p Port, v6 bool) []Tier {
	usable, total := map[string][]Backend{}, map[string]int{}
	for _, fallback := range []bool{false, true} {
		if len(usable) > 0 {
			break
		}
		for cluster := range in.Views {
			s := in.Views[cluster].Service(in.Name)
			for _, e := range twinEndpoints(in, own, cluster, p, v6) {
				ready := e.Ready || !e.Terminating && s.PublishNotReady
				if (!e.Terminating || e.Ready) && !fallback {
					total[cluster]++
				}
				if !fallback && ready || fallback && e.Terminating && !e.Ready && e.Serving {
					usable[cluster] = append(usable[cluster], Backend{Address: e.Address, Port: e.port, Node: e.Node, Zone: e.Zone, Terminating: e.Terminating && !e.Ready, Hints: e.Hints})
				}
			}
		}
	}
	weight := func(cluster string) uint16 {
		if s := in.Views[cluster].Service(in.Name); s.HasWeight {
			return s.Weight
		}
		return 1
	}
	left := func(string) uint16 { return ShareAll }
	if in.Left != nil && own.Global {
		left = in.Left
	}
	order, drained, weight, left := twinDrains(order, usable, weight, left)
	// Clusters of weight 0 go where the last cluster with a weight is.
	last := -1
	for i, tier := range order {
		for _, c := range tier {
			if len(usable[c]) > 0 && weight(c) > 0 {
				last = i
			}
		}
	}
	place := make([][]string, len(order))
	for i, tier := range order {
		for _, c := range tier {
			to := i
			if in.Views[c].Service(in.Name) != nil && weight(c) == 0 && last >= 0 {
				to = last
			}
			place[to] = append(place[to], c)
		}
	}
	minHealthy, _ := ParseMinHealthy(own.MinHealthy)
	var tiers []Tier
	var health []int64
	for _, tier := range place {
		slices.Sort(tier)
		var t Tier
		h, n := 0, 0
		for _, c := range tier {
			backends := usable[c]
			slices.SortFunc(backends, func(a, b Backend) int { return a.Address.Compare(b.Address) })
			if len(backends) > 0 {
				t.Groups = append(t.Groups, Group{c, clusterID(c), weight(c), false, backends})
			}
			if len(backends)+total[c] > 0 && (weight(c) > 0 || last < 0) {
				h, n = h+twinHealthy(in, c, backends, own.MinHealthy), n+max(total[c], fallbackCount(backends))
			}
		}
		if len(t.Groups) > 0 {
			tiers, health = append(tiers, t), append(health, int64(minHealthy.Share(h, n))*twinScale(t.Groups, left)/ShareAll)
		}
	}
	if len(drained) > 0 {
		if len(tiers) < MaxTiers {
			tiers, health = append(tiers, Tier{}), append(health, 0)
		}
		last := &tiers[len(tiers)-1]
		for _, c := range drained {
			slices.SortFunc(usable[c], func(a, b Backend) int { return a.Address.Compare(b.Address) })
			last.Groups = append(last.Groups, Group{c, clusterID(c), 0, true, usable[c]})
		}
	}
	for i := range tiers {
		tiers[i].Share = twinShare(health, i)
	}
	return tiers
}

// twinDrains takes the drained clusters out of the order. Where they are all
// there is, none is drained; where beside them there are only clusters of weight
// 0, these have weight 1.
func twinDrains(order [][]string, usable map[string][]Backend, weight, left func(string) uint16) (rest [][]string, drained []string, w, l func(string) uint16) {
	others, weighty := 0, 0
	for c := range usable {
		if left(c) == 0 {
			drained = append(drained, c)
			continue
		}
		others++
		if weight(c) > 0 {
			weighty++
		}
	}
	if others == 0 {
		return order, nil, weight, func(string) uint16 { return ShareAll }
	}
	slices.Sort(drained)
	for _, tier := range order {
		rest = append(rest, slices.DeleteFunc(slices.Clone(tier), func(c string) bool { return left(c) == 0 }))
	}
	if weighty == 0 && len(drained) > 0 {
		return rest, drained, func(string) uint16 { return 1 }, left
	}
	return rest, drained, weight, left
}

// twinScale gives groups the part of their weight that is left, if that differs
// among them, and returns the largest.
func twinScale(groups []Group, left func(string) uint16) int64 {
	var lefts, weights []int64
	for _, g := range groups {
		if g.Weight > 0 {
			lefts, weights = append(lefts, int64(left(g.Cluster))), append(weights, int64(g.Weight))
		}
	}
	if len(lefts) == 0 {
		return ShareAll
	}
	most, unit := slices.Max(lefts), 65535/slices.Max(weights)
	if slices.Min(lefts) != most {
		for i, g := range groups {
			if g.Weight > 0 {
				groups[i].Weight = uint16(max(1, new(big.Int).Div(big.NewInt(int64(g.Weight)*unit*int64(left(g.Cluster))), big.NewInt(most)).Int64()))
			}
		}
	}
	return most
}

// twinHealthy counts those of a cluster that take their part, where a number is asked for.
func twinHealthy(in MergeInput, cluster string, backends []Backend, wanted string) (n int) {
	for _, b := range backends {
		if wanted == "" || in.Used == nil || in.Used(clusterID(cluster), b) {
			n++
		}
	}
	return n
}

func fallbackCount(backends []Backend) int {
	if len(backends) > 0 && backends[0].Terminating {
		return len(backends)
	}
	return 0
}

// twinShare is the documented formula in exact fractions.
func twinShare(health []int64, i int) uint16 {
	sum, before := int64(0), int64(0)
	for j, h := range health {
		sum += h
		if j < i {
			before += h
		}
	}
	left := min(sum, ShareAll) - before
	if i == len(health)-1 || left <= health[i] {
		return ShareAll
	}
	f := new(big.Rat).Mul(big.NewRat(ShareAll, 1), big.NewRat(health[i], left))
	return uint16(new(big.Int).Quo(f.Num(), f.Denom()).Int64())
}
