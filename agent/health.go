package agent

import "time"

// HealthConfig are the thresholds of the health checks; zero fields mean the
// defaults in brackets.
type HealthConfig struct {
	Interval  time.Duration // between two probes of one node (300 ms)
	Timeout   time.Duration // of one probe (the interval)
	Down      int           // misses in a row that make a node down (3)
	Up        int           // answers in a row that make it up again (3)
	MaxProbes int           // per second in total; the interval stretches to keep it (500)
}
