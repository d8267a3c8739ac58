package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/test/lab"
	"github.com/tombolo-mesh/tombolo/test/lab/demo"
)

func (c *cli) demoCommand() *cobra.Command {
	o := demo.Options{Out: c.env.Stdout}
	var clean string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Two clouds, one global service, failover: on this machine, with real parts",
		Long: `Brings up clusters of real processes in network namespaces, joins them, and takes
them apart: backends removed, a cloud without power, partitions, dead control
planes, restarted agents, a killed tunnel. It ends with a table of claims; the exit
status is 0 only if all of them held. Nothing is left behind, also after Ctrl-C or
a crash. Needs root.`,
		Example: `  sudo tombolo demo
  sudo tombolo demo --clusters 3 --nodes 3
  sudo tombolo demo --keep            # leaves it up and says how to look around
  sudo tombolo demo --clean 1a2b      # removes one that was kept`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if clean != "" {
				dir, err := lab.Find(clean)
				if err != nil {
					return err
				}
				return lab.Sweep(clean, dir)
			}
			if err := lab.Prerequisites(); err != nil {
				return fmt.Errorf("the demo cannot run here: %w", err)
			}
			if o.BinDir == "" {
				exe, err := os.Executable()
				if err != nil {
					return err
				}
				o.BinDir = filepath.Dir(exe)
			}
			for _, name := range []string{"tombolo-apiserver", "tombolo-agent", "tombolo-cni"} {
				if _, err := os.Stat(filepath.Join(o.BinDir, name)); err != nil {
					return fmt.Errorf("the demo needs %s beside this program: %w\nfix: run 'make build', or name the folder with --bin", name, err)
				}
			}
			o.Colour = c.env.Terminal && c.env.Getenv("NO_COLOR") == "" && c.env.Getenv("TERM") != "dumb"
			return demo.Run(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.Clusters, "clusters", 2, "how many clusters")
	flags.IntVar(&o.Nodes, "nodes", 2, "how many nodes in each")
	flags.BoolVar(&o.Keep, "keep", false, "leave everything up at the end and say how to look around")
	flags.StringVar(&o.BinDir, "bin", "", "folder of the other programs (default: this program's)")
	flags.StringVar(&o.Logs, "logs", "", "if a step fails, collect logs, statuses and tables in this folder")
	flags.StringVar(&clean, "clean", "", "remove the demo with this ID that was kept")
	return cmd
}
