package agent

import (
	"fmt"
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
}

// drainStatus are those in force or on their way back, in a stable order.
func (s *State) drainStatus(now time.Time) []DrainStatus {
	out := []DrainStatus{}
	for _, d := range s.drains.list {
		left := d.Left(now)
		if d.Back && left == clustermesh.ShareAll {
			continue
		}
		st := DrainStatus{
			Cluster: d.Cluster, ByItself: d.itself, Back: d.Back, Left: percent(left), Since: d.Start.UTC(), Done: d.Done().UTC(), By: Escape(d.By),
		}
		if d.Service != (clustermesh.ServiceName{}) {
			st.Service = d.Service.String()
		}
		out = append(out, st)
	}
	return out
}

// drainsOf are those that concern a service.
func (s *State) drainsOf(name clustermesh.ServiceName, now time.Time) (out []DrainStatus) {
	imported, imports := s.imports.of[name]
	for _, d := range s.drainStatus(now) {
		if d.Service == "" || d.Service == name.String() || imports && d.Service == imported.String() {
			out = append(out, d)
		}
	}
	return out
}

func percent(left uint16) float64 { return float64(left) * 100 / clustermesh.ShareAll }

// Text says how far it is.
func (d DrainStatus) Text(now time.Time) string {
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
