package main

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent"
)

func (c *cli) mapsCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:   "maps [TABLE]",
		Short: "Print what this node's kernel holds: BPF maps, peers, routes",
		Long: `Without a name every table is printed, in the order in which rows enter. The text
is the one that tests compare: stable, one row a line, the key first.`,
		Example:           "  tombolo maps\n  tombolo maps services\n  tombolo maps -o json | jq -r '.tables.peers[]'",
		Args:              upToOneArg("TABLE"),
		ValidArgsFunction: cobra.FixedCompletions(agent.TableNames(), cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := agent.TableNames()
			if len(args) == 1 {
				if err := oneOf("table", args[0], names); err != nil {
					return err
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
					fmt.Fprintf(c.env.Stdout, "# %s: %s\n", name, count(len(tables[name]), "row"))
				}
				for _, line := range tables[name] {
					fmt.Fprintln(c.env.Stdout, printable(line))
				}
			}
			if c.output == "json" {
				return c.printJSON("Tables", map[string]any{"tables": tables})
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
