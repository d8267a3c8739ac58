package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
a crash. Needs root, and Linux 6.6 or later.`,
		Example: `  sudo tombolo demo
  sudo tombolo demo --clusters 3 --nodes 3
  sudo tombolo demo --keep            # leaves it up and says how to look around
  sudo tombolo demo --clean 1a2b      # removes one that was kept`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if clean != "" {
				return c.cleanDemo(clean)
			}
			if err := o.Check(); err != nil {
				return usageError{err}
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
			o.Colour = c.env.colour()
			return demo.Run(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.Clusters, "clusters", 2, "how many clusters")
	flags.IntVar(&o.Nodes, "nodes", 2, "how many nodes in each")
	flags.BoolVar(&o.Keep, "keep", false, "leave everything up at the end and say how to look around (not after Ctrl-C)")
	flags.StringVar(&o.BinDir, "bin", "", "folder of the other programs (default: this program's)")
	flags.StringVar(&o.Logs, "logs", "", "if a step fails or a claim does not hold, collect logs, statuses and tables in this folder")
	flags.StringVar(&clean, "clean", "", "remove the demo with this ID that was kept")
	cmd.RegisterFlagCompletionFunc("clean", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return keptDemos(), cobra.ShellCompDirectiveNoFileComp
	})
	cmd.MarkFlagDirname("bin")
	cmd.MarkFlagDirname("logs")
	return cmd
}

// cleanDemo removes a demo that was kept.
func (c *cli) cleanDemo(id string) error {
	kept := keptDemos()
	if !slices.Contains(kept, id) {
		if len(kept) == 0 {
			return fmt.Errorf("no demo %q: none was kept on this machine", id)
		}
		return fmt.Errorf("no demo %q: there are %s", id, strings.Join(kept, ", "))
	}
	dir, err := lab.Find(id)
	if err != nil {
		return err
	}
	if err := lab.Sweep(id, dir); err != nil {
		return fmt.Errorf("demo %s is not wholly removed: %w\nfix: run this again, as root", id, err)
	}
	fmt.Fprintf(c.env.Stdout, "removed demo %s: its processes, namespaces, cgroups, pins and files\n", id)
	return nil
}

// keptDemos are the IDs of the demos on this machine, also of one that runs.
func keptDemos() []string {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), "tombolo-[0-9a-f][0-9a-f][0-9a-f][0-9a-f]"))
	var ids []string
	for _, dir := range dirs {
		ids = append(ids, strings.TrimPrefix(filepath.Base(dir), "tombolo-"))
	}
	return ids
}
