package main

import (
	"os"
	"runtime/debug"
)

// growth is how much the heap may grow, in percent of what is in use, before it
// is collected. An agent sits on every node and holds what every cluster says,
// so memory counts; half of Go's default costs a sync a few hundredths of a
// second and saves a quarter of the memory. GOGC in the environment overrides it.
const growth = 50

func frugal() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(growth)
	}
}
