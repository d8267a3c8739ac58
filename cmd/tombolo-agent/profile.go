package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
)

// profileVar names the environment variable for developers that names a folder:
// the process writes its CPU profile there, as agent-<pid>.cpu, when it ends.
const profileVar = "TOMBOLO_CPUPROFILE"

// profile starts a CPU profile if the environment asks for one.
func profile() (stop func(), err error) {
	dir := os.Getenv(profileVar)
	if dir == "" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("agent-%d.cpu", os.Getpid())))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", profileVar, err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", profileVar, err)
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
