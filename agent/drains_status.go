package agent

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// DrainStatus is a cluster, or a service in it, that gets fewer new connections
// from this node or none.
type DrainStatus struct {
	Cluster  string    `json:"cluster"`
	Service  string    `json:"service,omitempty"` // <namespace>/<name>; absent: all
	ByItself bool      `json:"byItself"`          // that cluster says so; else this one's operator
	Back     bool      `json:"back"`              // it gets them again, more and more
	Left     float64   `json:"leftPercent"`       // of its weight
	Since    time.Time `json:"since"`             // when it began
	Done     time.Time `json:"done"`              // when nothing is, or will be, left of it; with back: all
	By       string    `json:"by,omitempty"`
	Services int       `json:"services,omitempty"` // drained by themselves there, in place of a line for each
}

// drainStatus are those in force or on their way back, in a stable order: what this
// cluster's operator says first. Of services that a peer drains, which may be many,
// there is a count.
func (s *State) drainStatus(now time.Time) []DrainStatus {
	out, services := []DrainStatus{}, map[string]int{}
	for id, d := range s.drains.in {
		switch {
		case d.Back && d.Left(now) == clustermesh.ShareAll:
		case id.itself && id.cluster != s.own && id.service != (clustermesh.ServiceName{}):
			services[id.cluster]++
		default:
			out = append(out, d.status(id, now))
		}
	}
	for cluster, n := range services {
		out = append(out, DrainStatus{Cluster: cluster, ByItself: true, Services: n})
	}
	slices.SortFunc(out, compareDrains)
	return out
}

func (d drain) status(id drainID, now time.Time) DrainStatus {
	st := DrainStatus{
		Cluster: d.Cluster, ByItself: id.itself, Back: d.Back, Left: percent(d.Left(now)), Since: d.Start.UTC(), Done: d.Done().UTC(), By: Escape(d.By),
	}
	if d.Service != (clustermesh.ServiceName{}) {
		st.Service = d.Service.String()
	}
	return st
}

func compareDrains(a, b DrainStatus) int {
	if a.ByItself != b.ByItself {
		if a.ByItself {
			return 1
		}
		return -1
	}
	return cmp.Or(compareStrings(a.Cluster, b.Cluster), compareStrings(a.Service, b.Service), a.Services-b.Services)
}

// drainsOf are those that concern a service.
func (s *State) drainsOf(name clustermesh.ServiceName, now time.Time) (out []DrainStatus) {
	services := []clustermesh.ServiceName{{}, name}
	if imported, imports := s.imports.of[name]; imports && imported != name {
		services = append(services, imported)
	}
	for cluster := range s.clusters {
		for _, service := range services {
			for _, itself := range []bool{false, true} {
				id := drainID{itself, cluster, service}
				if d, is := s.drains.in[id]; is && !(d.Back && d.Left(now) == clustermesh.ShareAll) {
					out = append(out, d.status(id, now))
				}
			}
		}
	}
	slices.SortFunc(out, compareDrains)
	return out
}

func percent(left uint16) float64 { return float64(left) * 100 / clustermesh.ShareAll }

// Text says how far it is.
func (d DrainStatus) Text(now time.Time) string {
	if d.Services > 0 {
		return fmt.Sprintf("%d of its services, by itself", d.Services)
	}
	who := ""
	if d.ByItself {
		who = ", by itself"
	} else if d.By != "" {
		who = ", by " + d.By
	}
	in := d.Done.Sub(now).Round(time.Second)
	switch {
	case d.Back:
		return fmt.Sprintf("returning: %.0f %% of its weight, all of it in %v%s", d.Left, in, who)
	case d.Left > 0:
		return fmt.Sprintf("draining: %.0f %% left, done in %v%s", d.Left, in, who)
	}
	return "drained since " + d.Done.UTC().Format(time.RFC3339) + who
}
