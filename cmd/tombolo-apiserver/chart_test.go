package main

import (
	"testing"

	"github.com/tombolo-mesh/tombolo/deploy/charttest"
)

// Whatever the chart starts this program with is what it takes.
func TestChartStarts(t *testing.T) {
	starts := charttest.Starts(t, "../../deploy/install/testdata", "/usr/bin/tombolo-apiserver", nil)
	if len(starts) == 0 {
		t.Fatal("no golden file starts tombolo-apiserver")
	}
	for _, s := range starts {
		cmd := command(nil, nil, nil)
		if err := cmd.ParseFlags(s.Args); err != nil {
			t.Errorf("%s: %v", s.Where, err)
			continue
		}
		if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
			t.Errorf("%s: %v", s.Where, err)
		}
		entries, err := cmd.Flags().GetStringSlice("advertise")
		if err != nil {
			t.Fatal(err)
		}
		listen, _ := cmd.Flags().GetString("listen")
		if got, err := advertised(entries, listen); err != nil || len(got) < 2 {
			t.Errorf("%s: --advertise %v: %v, %v; want an address of each family", s.Where, entries, got, err)
		}
	}
}
