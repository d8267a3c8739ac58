package main

import (
	"testing"

	"github.com/tombolo-mesh/tombolo/deploy/charttest"
)

// Whatever the chart starts this program with is what it takes.
func TestChartStarts(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range charttest.Starts(t, "../../deploy/install/testdata", "/usr/bin/tombolo-agent", nil) {
		cmd, rest, err := newCommand().Find(s.Args)
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil {
			t.Errorf("%s: %v", s.Where, err)
			continue
		}
		seen[cmd.Name()] = true
	}
	for _, name := range []string{"tombolo-agent", "tunnel", "cleanup", "mount-bpffs"} {
		if !seen[name] {
			t.Errorf("no golden file starts %s", name)
		}
	}
}
