package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkStart is how long a command takes that has nothing to do, beside kubectl
// (KUBECTL=, or the one in PATH).
func BenchmarkStart(b *testing.B) {
	tombolo := filepath.Join(b.TempDir(), "tombolo")
	if out, err := exec.Command("go", "build", "-o", tombolo, ".").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	kubectl, err := exec.LookPath(orDefault(os.Getenv("KUBECTL"), "kubectl"))
	for name, command := range map[string][]string{"tombolo": {tombolo, "version"}, "kubectl": {kubectl, "version", "--client"}} {
		b.Run(name, func(b *testing.B) {
			if name == "kubectl" && err != nil {
				b.Skip(err)
			}
			for b.Loop() {
				if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
			}
		})
	}
}
