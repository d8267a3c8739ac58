package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// recordsCommand prints what the cluster's store holds.
func (c *cli) recordsCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:   "records [PREFIX]",
		Short: "Print what this cluster publishes: its store as text",
		Long: `One record a line: its key, then what it says. A prefix without a leading slash
is taken below /tombolo/v1/. What is private to the mesh API server is named, not
shown.`,
		Example: `  tombolo mesh records
  tombolo mesh records export/aws/service/
  tombolo mesh records local/ -o json | jq -r '.records[]'`,
		Args:              upToOneArg("PREFIX"),
		ValidArgsFunction: cobra.FixedCompletions([]string{"export/", "local/", "private/"}, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace),
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, done, err := c.admin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			prefix := ""
			if len(args) == 1 {
				prefix = args[0]
			}
			res, err := admin.Dump(cmd.Context(), &pb.DumpRequest{Prefix: prefix})
			if err != nil {
				return rpcError(err)
			}
			records := lines(res.Text)
			if c.output == "json" {
				return c.printJSON("Records", map[string]any{"records": records})
			}
			if len(records) == 0 {
				fmt.Fprintf(c.env.Stderr, "no records under %q\n", printable(prefix))
			}
			for _, line := range records {
				fmt.Fprintln(c.env.Stdout, printable(line))
			}
			return nil
		},
	})
}

// confirmKinds are what can be held: objects of the source, and records made of
// them.
var confirmKinds = []string{
	"pod", "namespace", "networkpolicy", "clusternetworkpolicy", "node", "service", "endpointslice",
	"identity", "address", "policy", "clusterpolicy", "workload",
}

// confirmCommand lets a held mass delete go ahead.
func (c *cli) confirmCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:   "confirm-deletes [KIND]",
		Short: "Let a held mass delete go ahead",
		Long: `When most records of a kind would vanish at once, the mesh API server holds their
deletion back and 'tombolo status' says so: an empty list is more often a mistake
than a wish. This says that it is meant, for one kind or for all.`,
		Example:           "  tombolo mesh confirm-deletes service\n  tombolo mesh confirm-deletes",
		Args:              upToOneArg("KIND"),
		ValidArgsFunction: cobra.FixedCompletions(confirmKinds, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, done, err := c.admin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			kind := ""
			if len(args) == 1 {
				kind = args[0]
			}
			res, err := admin.ConfirmDeletes(cmd.Context(), &pb.ConfirmDeletesRequest{Kind: kind})
			if err != nil {
				return rpcError(err)
			}
			if c.output == "json" {
				return c.printJSON("ConfirmedDeletes", map[string]any{"kind": kind, "released": res.Released})
			}
			if res.Released == 0 {
				fmt.Fprintln(c.env.Stderr, "nothing is held")
				return nil
			}
			fmt.Fprintf(c.env.Stdout, "%s deleted\n", count(int(res.Released), "record"))
			return nil
		},
	})
}
