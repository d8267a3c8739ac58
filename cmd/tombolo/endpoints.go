package main

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

func (c *cli) endpointsCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:     "endpoints",
		Aliases: []string{"endpoint", "ep"},
		Short:   "List this node's pods: state, addresses, identity, policy in force",
		Long: `STATE is creating (its rows are not all in the kernel: nothing passes), ready,
regenerating (it works by rows that are about to change), or disconnecting (the pod
is gone, a row of it is not yet). INGRESS and EGRESS say how connections to and from
the pod are judged: open (no policy selects it), rules (policies of the Admin or
Baseline tier have a say), isolated (what no rule allows is forbidden), closed
(nothing passes: its policy is not known yet or does not fit into the kernel).
Pods that Tombolo has not connected are named below.`,
		Example: `  tombolo endpoints
  tombolo endpoints --context aws --node worker-1
  tombolo endpoints -o json | jq -r '.items[] | select(.state != "ready").name'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := c.getAgent(cmd.Context(), "/v1/endpoints")
			if err != nil {
				return err
			}
			if c.output == "json" {
				return c.printJSON("EndpointList", json.RawMessage(body))
			}
			var list agent.EndpointList
			if err := json.Unmarshal(body, &list); err != nil {
				return fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
			}
			return c.printEndpoints(list)
		},
	})
}

func (c *cli) printEndpoints(list agent.EndpointList) error {
	if len(list.Items) == 0 {
		fmt.Fprintf(c.env.Stderr, "node %s has no endpoints\n", printable(list.Node))
	} else {
		var rows [][]string
		for _, e := range list.Items {
			rows = append(rows, []string{e.Namespace, e.Name, e.State, addressesText(e), e.Identity, e.Ingress.Mode, e.Egress.Mode, labelsText(e.Labels)})
		}
		if err := table(c.env.Stdout, "NAMESPACE NAME STATE ADDRESSES IDENTITY INGRESS EGRESS LABELS", rows); err != nil {
			return err
		}
	}
	if len(list.Unmanaged) > 0 {
		fmt.Fprintln(c.env.Stdout)
		c.printUnmanaged(list.Unmanaged)
	}
	return nil
}

func addressesText(e agent.EndpointSummary) string {
	var texts []string
	for _, a := range e.Addresses {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

// labelsText leaves out what the namespace's name and the cluster say already.
func labelsText(labels map[string]string) string {
	var texts []string
	for key, value := range labels {
		if key == clustermesh.LabelCluster || key == clustermesh.LabelNamespace || strings.HasPrefix(key, clustermesh.LabelNamespacePrefix) {
			continue
		}
		texts = append(texts, key+"="+value)
	}
	sort.Strings(texts)
	return strings.Join(texts, ",")
}

// endpointCounts are the endpoints of a node by state, those that need a look first.
func endpointCounts(endpoints []agent.EndpointStatus) string {
	counts := map[string]int{}
	for _, e := range endpoints {
		counts[e.State]++
	}
	var texts []string
	for _, state := range []string{agent.EndpointCreating, agent.EndpointRegenerating, agent.EndpointDisconnecting, agent.EndpointReady} {
		if n := counts[state]; n > 0 {
			texts = append(texts, fmt.Sprintf("%d %s", n, state))
		}
	}
	return orDefault(strings.Join(texts, ", "), "none")
}

// printUnmanaged names pods that Tombolo has not connected, and what to do.
func (c *cli) printUnmanaged(pods []agent.UnmanagedPod) {
	verb := "are"
	if len(pods) == 1 {
		verb = "is"
	}
	fmt.Fprintf(c.env.Stdout, "  NOT MANAGED: %s on this node %s not connected by Tombolo: %s\n", count(len(pods), "pod"), verb, podNames(pods))
	c.adviseUnmanaged()
}

func (c *cli) adviseUnmanaged() {
	fmt.Fprintln(c.env.Stdout, "    cause: another CNI plugin has connected them, most often before Tombolo was installed")
	fmt.Fprintln(c.env.Stdout, "    fix:   neither policy nor encryption covers them; delete them, so that they are made anew")
}
