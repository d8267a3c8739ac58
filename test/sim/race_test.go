//go:build race

package sim_test

import "runtime"

// Timers of a synctest bubble that run on two processors at once break the race
// detector's own runtime (golang/go#78156). It finds the same races on one: it
// looks at what happens before what, not at when.
func init() { runtime.GOMAXPROCS(1) }
