package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version of the build; set by the linker for releases.
var version = "dev"

func (c *cli) versionCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    "Of this program; those of agents and mesh API servers are in 'tombolo status'.",
		Example: "  tombolo version -o json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			revision := ""
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						revision = s.Value
					}
				}
			}
			if c.output == "json" {
				return c.printJSON("Version", map[string]any{"version": version, "revision": revision, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
			}
			if len(revision) > 12 {
				revision = revision[:12]
			}
			fmt.Fprintf(c.env.Stdout, "tombolo %s (revision %s, %s, %s/%s)\n", version, orDefault(revision, "unknown"), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	})
}
