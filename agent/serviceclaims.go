package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// frontendKind says what gives a frontend to a service. Of several services with
// one frontend the lower kind has it: what a cluster hands out itself comes
// before what anybody may write into a manifest, so that nobody takes a ClusterIP
// away by naming it as an external IP.
type frontendKind uint8

const (
	kindClusterIP frontendKind = iota
	kindLoadBalancer
	kindExternalIP
	kindNodePort
	kindHostPort
)

var frontendKinds = [...]string{"ClusterIP", "load balancer", "external IP", "node port", "host port"}

func (k frontendKind) String() string { return frontendKinds[k] }

// claimant is a service that wants a frontend.
type claimant struct {
	name clustermesh.ServiceName
	kind frontendKind
}

func compareClaimants(a, b claimant) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name.Namespace, b.name.Namespace), cmp.Compare(a.name.Name, b.name.Name))
}

func (c claimant) String() string {
	if workload, is := hostPortOf(c.name); is {
		return fmt.Sprintf("pod %s (%s)", workload, c.kind)
	}
	return fmt.Sprintf("service %s (%s)", c.name, c.kind)
}

// claim wants row at k for a service. Of several services with one frontend the
// first claimant has it.
func (s *State) claim(k ServiceKey, c claimant, row ServiceRow) {
	holder, taken := s.frontends[k]
	if taken && holder.name != c.name || s.contested[k] != nil {
		s.contest(k, holder, taken, c)
		if first := s.contested[k][0]; first.name != c.name {
			if taken && holder.name == c.name {
				s.touchService(first.name) // takes it over
			} else {
				return
			}
		}
	}
	s.frontends[k] = c
	s.t.services.Set(k, row)
}

// contest notes that c wants k, too, as well as its holder.
func (s *State) contest(k ServiceKey, holder claimant, taken bool, c claimant) {
	all := slices.DeleteFunc(slices.Clone(s.contested[k]), func(o claimant) bool { return o.name == c.name })
	all = append(all, c)
	if taken && !slices.ContainsFunc(all, func(o claimant) bool { return o.name == holder.name }) {
		all = append(all, holder)
	}
	s.setContest(k, all)
}

// setContest notes who wants k: several of them are a problem.
func (s *State) setContest(k ServiceKey, all []claimant) {
	key := "frontend " + k.String()
	if len(all) < 2 {
		delete(s.contested, k)
		delete(s.problems, key)
		return
	}
	slices.SortFunc(all, compareClaimants)
	s.contested[k] = all
	var names []string
	for _, c := range all {
		names = append(names, c.String())
	}
	s.problems[key] = clustermesh.Problem{
		What: fmt.Sprintf("frontend %s is claimed by %s", k, strings.Join(names, ", ")),
		Why:  "connections to one address and port lead to one of them; " + names[0] + " has it",
		Fix:  "give one of them another address or port",
	}
}

// unclaim ends a service's claim on k and lets the next one have it.
func (s *State) unclaim(k ServiceKey, name clustermesh.ServiceName) {
	others := slices.DeleteFunc(slices.Clone(s.contested[k]), func(c claimant) bool { return c.name == name })
	s.setContest(k, others)
	if s.frontends[k].name != name {
		return
	}
	delete(s.frontends, k)
	s.t.services.Delete(k)
	for _, other := range others {
		s.touchService(other.name)
	}
}
