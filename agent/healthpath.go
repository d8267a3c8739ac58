package agent

import (
	"slices"
	"time"
)

// recentProbes counts the probes of about the last minute in slices of time, so
// that a node costs the same memory however often it is probed.
type recentProbes struct {
	at     int64 // the present slice: Unix time divided by lossSlice
	slices [lossSlices]struct{ sent, missed uint32 }
}

const (
	lossSlice  = 10 * time.Second
	lossSlices = 6 // a minute
)

// smoothing is the share of a new round trip in the smoothed one: 1/8, as TCP has it.
const smoothing = 8

func smooth(old, fresh time.Duration) time.Duration {
	if old == 0 {
		return fresh
	}
	return old + (fresh-old)/smoothing
}

// deviate smooths how far round trips are from their mean, as TCP does: by a quarter.
func deviate(old, mean, fresh time.Duration) time.Duration {
	if mean == 0 {
		return fresh / 2
	}
	return old + ((fresh-mean).Abs()-old)/4
}

// advance forgets the slices that are older than a minute.
func (r *recentProbes) advance(now time.Time) {
	at := now.Unix() / int64(lossSlice/time.Second)
	for i := max(r.at+1, at-lossSlices+1); i <= at; i++ {
		r.slices[i%lossSlices] = struct{ sent, missed uint32 }{}
	}
	r.at = max(r.at, at) // a clock that is set back keeps counting where it is
}

func (r *recentProbes) note(ok bool, now time.Time) {
	r.advance(now)
	s := &r.slices[r.at%lossSlices]
	s.sent++
	if !ok {
		s.missed++
	}
}

func (r *recentProbes) sum(now time.Time) (sent, missed uint64) {
	r.advance(now)
	for _, s := range r.slices {
		sent, missed = sent+uint64(s.sent), missed+uint64(s.missed)
	}
	return sent, missed
}

// pathReport is what the probes say of the way to one node.
type pathReport struct {
	RoundTrip    time.Duration // smoothed; 0 = no answer yet
	Sent, Missed uint64        // in the last minute
}

// PathState is this node's verdict of the data path to a cluster.
type PathState string

// The states of a data path.
const (
	PathUp       PathState = "up"       // every node answers
	PathDegraded PathState = "degraded" // some do not
	PathDown     PathState = "down"     // none does
	PathUnknown  PathState = "unknown"  // nobody was asked yet, or there is nobody to ask
)

// PathStatus is what this node's probes say of the way to a cluster's nodes.
type PathStatus struct {
	State PathState `json:"state"`
	// RoundTripMS is the median, over the nodes that ever answered, of their
	// smoothed round trips, in milliseconds; absent if none did.
	RoundTripMS *float64 `json:"roundTripMS,omitempty"`
	// LossPercent is the share of the last minute's probes that were not
	// answered; absent if there were none.
	LossPercent *float64 `json:"lossPercent,omitempty"`
}

// pathStatus sums up the ways to the nodes of one cluster.
func pathStatus(paths []pathReport, clusterDown bool, nodesDown int) PathStatus {
	s := PathStatus{State: PathUnknown}
	var trips []time.Duration
	var sent, missed uint64
	for _, p := range paths {
		if p.RoundTrip > 0 {
			trips = append(trips, p.RoundTrip)
		}
		sent, missed = sent+p.Sent, missed+p.Missed
	}
	if len(trips) > 0 {
		ms := float64(median(trips).Microseconds()) / 1000
		s.RoundTripMS = &ms
	}
	if sent > 0 {
		loss := 100 * float64(missed) / float64(sent)
		s.LossPercent = &loss
	}
	switch {
	case clusterDown:
		s.State = PathDown
	case nodesDown > 0:
		s.State = PathDegraded
	case len(trips) > 0 || sent > 0:
		s.State = PathUp
	}
	return s
}

// median of a list that is not empty; of an even number the mean of the middle two.
func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}
