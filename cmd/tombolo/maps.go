package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent"
)

func (c *cli) mapsCommand() *cobra.Command {
	return c.reads(&cobra.Command{
		Use:   "maps [TABLE]",
		Short: "Print what this node's kernel holds: BPF maps, peers, routes",
		Long: `Without a name every table is printed, in the order in which rows enter. The text
is the one that tests compare: stable, one row a line, the key first.`,
		Example:           "  tombolo maps\n  tombolo maps services\n  tombolo maps -o json",
		Args:              cobra.MaximumNArgs(1),
		ValidArgs:         agent.TableNames(),
		ValidArgsFunction: cobra.FixedCompletions(agent.TableNames(), cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := agent.TableNames()
			if len(args) == 1 {
				if !slices.Contains(names, args[0]) {
					return usageError{fmt.Errorf("no table %q: there are %s", args[0], strings.Join(names, ", "))}
				}
				names = args
			}
			tables := map[string][]string{}
			for _, name := range names {
				body, err := c.getAgent(cmd.Context(), "/v1/tables/"+url.PathEscape(name))
				if err != nil {
					return err
				}
				tables[name] = lines(string(body))
				if c.output == "json" {
					continue
				}
				if len(args) == 0 {
					fmt.Fprintf(c.env.Stdout, "# %s: %d rows\n", name, len(tables[name]))
				}
				for _, line := range tables[name] {
					fmt.Fprintln(c.env.Stdout, printable(line))
				}
			}
			if c.output == "json" {
				return c.printJSON("Tables", map[string]any{"tables": json.RawMessage(must(json.Marshal(tables)))})
			}
			return nil
		},
	})
}

func lines(text string) []string {
	all := []string{}
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\n"); line != "" {
			all = append(all, line)
		}
	}
	return all
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err) // maps of strings always marshal
	}
	return b
}
