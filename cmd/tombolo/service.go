package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent"
)

func (c *cli) serviceCommand() *cobra.Command {
	return group("service", "List services, and explain where their traffic goes",
		"Reads this node's agent: what it says is what this node's kernel does.",
		"  tombolo service list\n  tombolo service explain shop/cart",
		c.serviceListCommand(), c.serviceExplainCommand())
}

func (c *cli) serviceListCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the services this node knows",
		Long: `CLUSTERS are those whose backends take part on this node, BACKENDS how many they
have together. FRONTENDS at 0.0.0.0 or [::] are node ports.

If the cluster's mesh API server can be asked, too, services that it refuses, or of
which it refuses an annotation, are named below, with what to do.`,
		Example: "  tombolo service list\n  tombolo service list -o json | jq -r '.items[].name'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := c.getAgent(cmd.Context(), "/v1/services")
			if err != nil {
				return err
			}
			if c.output == "json" {
				doc := map[string]json.RawMessage{}
				if err := json.Unmarshal(body, &doc); err != nil {
					return fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
				}
				doc["problems"], _ = json.Marshal(c.serviceProblems(cmd.Context())) // plain data: cannot fail
				return c.printJSON("ServiceList", doc)
			}
			var list struct {
				Items []agent.ServiceSummary `json:"items"`
			}
			if err := json.Unmarshal(body, &list); err != nil {
				return fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
			}
			defer func() { c.printProblems(c.serviceProblems(cmd.Context())) }()
			if len(list.Items) == 0 {
				fmt.Fprintln(c.env.Stderr, "this node knows no services")
				return nil
			}
			var rows [][]string
			for _, s := range list.Items {
				global := "no"
				if s.Global {
					global = "yes"
				}
				if s.Import != "" {
					global = "imports " + s.Import
				}
				rows = append(rows, []string{s.Namespace, s.Name, global, s.Affinity, strings.Join(s.Clusters, ","), fmt.Sprint(s.Backends), strings.Join(s.Frontends, ",")})
			}
			return table(c.env.Stdout, "NAMESPACE NAME GLOBAL AFFINITY CLUSTERS BACKENDS FRONTENDS", rows)
		},
	})
}

// serviceProblems are those that the cluster's mesh API server has with Services. On
// most nodes none runs, and the list is whole without them.
func (c *cli) serviceProblems(ctx context.Context) []agent.ProblemStatus {
	out := []agent.ProblemStatus{}
	server, err := c.serverStatus(ctx)
	if err != nil {
		return out
	}
	for _, p := range server.Problems {
		if strings.HasPrefix(p.Object, "Service ") {
			out = append(out, serverProblem(p))
		}
	}
	return out
}

func (c *cli) serviceExplainCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:   "explain NAMESPACE/NAME",
		Short: "Explain why connections to a service go where they go",
		Long: `Shows every frontend and the traffic policy in force, the tiers in the order they
are tried, each cluster's weight and backends, who is judged down, and for every
cluster that takes no part and every endpoint that this node does not use, why not.`,
		Example:           "  tombolo service explain shop/cart\n  tombolo service explain shop/cart -o json",
		Args:              oneArg("NAMESPACE/NAME"),
		ValidArgsFunction: c.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, name, ok := strings.Cut(args[0], "/")
			if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
				return usageError{fmt.Errorf("%q is not a service: want NAMESPACE/NAME, like default/checkout", args[0])}
			}
			body, err := c.getAgent(cmd.Context(), "/v1/services/"+url.PathEscape(namespace)+"/"+url.PathEscape(name))
			if err != nil {
				return err
			}
			if c.output == "json" {
				return c.printJSON("ServiceExplanation", json.RawMessage(body))
			}
			var e agent.ServiceExplanation
			if err := json.Unmarshal(body, &e); err != nil {
				return fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
			}
			fmt.Fprintln(c.env.Stdout, strings.TrimRight(printableText(e.Text), "\n"))
			return nil
		},
	})
}

// completeServices offers the services the agent knows.
func (c *cli) completeServices(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	body, err := c.getAgent(cmd.Context(), "/v1/services")
	var list struct {
		Items []agent.ServiceSummary `json:"items"`
	}
	if err != nil || len(args) > 0 || json.Unmarshal(body, &list) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, s := range list.Items {
		names = appendPlain(names, s.Namespace+"/"+s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
