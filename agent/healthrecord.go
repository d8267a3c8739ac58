package agent

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// verdictsKept is how many of the last verdicts the status names.
const verdictsKept = 32

// verdictRecord remembers the last verdicts and measures how long they took: to find
// that a node is down, to hear of it, and to tell the kernel.
type verdictRecord struct {
	mu        sync.Mutex
	kept      []HealthVerdict // the last ones that were written, oldest first
	unwritten []HealthVerdict

	detection, spreading, writing prometheus.Histogram
}

func newVerdictRecord() *verdictRecord {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tombolo_agent_" + name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18)})
	}
	return &verdictRecord{
		detection: histogram("node_down_detection_seconds", "From the first probe that a node did not answer to the verdict that it is down, where this agent missed it itself."),
		spreading: histogram("node_down_spreading_seconds", "From the first word of another agent against a node to the verdict that it is down, where agents agreed."),
		writing:   histogram("node_verdict_write_seconds", "From a verdict to the kernel."),
	}
}

func (r *verdictRecord) histograms() []prometheus.Histogram {
	return []prometheus.Histogram{r.detection, r.spreading, r.writing}
}

// decided takes in verdicts that are to be written.
func (r *verdictRecord) decided(news []HealthVerdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unwritten = append(r.unwritten, news...)
	for _, v := range news {
		if v.Down && !v.Silent.IsZero() {
			r.detection.Observe(v.Decided.Sub(v.Silent).Seconds())
		}
		if v.Down && !v.Accused.IsZero() && len(v.By) > 0 {
			r.spreading.Observe(v.Decided.Sub(v.Accused).Seconds())
		}
	}
}

// written notes that all verdicts so far are in the kernel.
func (r *verdictRecord) written(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.unwritten {
		v.Written = now
		r.writing.Observe(now.Sub(v.Decided).Seconds())
		r.kept = append(r.kept, v)
	}
	r.unwritten = nil
	if extra := len(r.kept) - verdictsKept; extra > 0 {
		r.kept = slices.Delete(r.kept, 0, extra)
	}
}

// last are the last verdicts, oldest first, those that are still to be written
// among them.
func (r *verdictRecord) last() []HealthVerdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Concat(r.kept, r.unwritten)
}
