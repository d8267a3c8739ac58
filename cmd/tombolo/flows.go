package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent"
)

func (c *cli) flowsCommand() *cobra.Command {
	var last int
	var follow, dropped bool
	var verdict, pod, policyName string
	cmd := c.answers(&cobra.Command{
		Use:   "flows",
		Short: "Print what was dropped on this node and which connections were opened, and why",
		Long: `One line an event: the time, what became of the packet (forwarded: the first one of a
flow; dropped; cut: a flow that policy newly forbids), from whom to whom, the reason,
and the policy rule that decided. The agent keeps the last 4096. Reasons are those of
the metric tombolo_bpf_events_total. With -o json each line is a document of its own.

When events come faster than they are read, some are lost; they are counted, and it is
said here in their place.`,
		Example: `  tombolo flows
  tombolo flows --follow --dropped
  tombolo flows --pod shop/web --last 20
  tombolo flows --policy shop/db -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			if last < 0 {
				return usageError{fmt.Errorf("--last %d: want 0 or more", last)}
			}
			if cmd.Flags().Changed("last") || follow {
				q.Set("last", strconv.Itoa(last))
			}
			if dropped {
				verdict = string(agent.FlowDropped)
			}
			if verdict != "" {
				if err := oneOf("--verdict", verdict, flowVerdicts); err != nil {
					return err
				}
				q.Set("verdict", verdict)
			}
			for name, value := range map[string]string{"pod": pod, "policy": policyName} {
				if value != "" {
					q.Set(name, value)
				}
			}
			if follow {
				q.Set("follow", "1")
			}
			return c.flows(cmd.Context(), "/v1/flows?"+q.Encode(), follow)
		},
	})
	flags := cmd.Flags()
	flags.BoolVar(&follow, "follow", false, "go on with what happens from now, until Ctrl-C")
	flags.IntVar(&last, "last", 0, "only the last `N` that there are (default: all that are kept; none with --follow)")
	flags.BoolVar(&dropped, "dropped", false, "only what was dropped; the same as --verdict dropped")
	flags.StringVar(&verdict, "verdict", "", "only forwarded, dropped or cut")
	flags.StringVar(&pod, "pod", "", "only from or to this pod, `NAMESPACE/NAME` or CLUSTER/NAMESPACE/NAME")
	flags.StringVar(&policyName, "policy", "", "only what this policy decided, `NAMESPACE/NAME`, or NAME of a ClusterNetworkPolicy")
	cmd.MarkFlagsMutuallyExclusive("dropped", "verdict")
	cmd.RegisterFlagCompletionFunc("verdict", cobra.FixedCompletions(flowVerdicts, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var flowVerdicts = []string{string(agent.FlowForwarded), string(agent.FlowDropped), string(agent.FlowCut)}

// flows prints lines as they come. Who ends a --follow ends well.
func (c *cli) flows(ctx context.Context, path string, follow bool) error {
	res, err := c.open(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	out := bufio.NewWriter(c.env.Stdout)
	n := 0
	in := bufio.NewReader(res.Body)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			break
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return fmt.Errorf("answer of the agent at %s broke off: %w", c.agentPlace(), err)
		}
		n++
		if err := c.flowLine(out, line); err != nil {
			return err
		}
		if in.Buffered() == 0 { // nothing more waits: who watches sees what there is
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
	switch {
	case follow && ctx.Err() == nil:
		return errors.Join(errors.New("the agent has stopped; what happens now is not seen"), out.Flush())
	case n == 0 && !follow:
		fmt.Fprintln(c.env.Stderr, "no such flows were seen")
	}
	return out.Flush()
}

func (c *cli) flowLine(out io.Writer, line []byte) error {
	if c.output == "json" {
		_, err := io.WriteString(out, escapeJSON(string(line)))
		return err
	}
	var doc struct {
		agent.Flow
		Lost uint64 `json:"lost"`
	}
	if err := json.Unmarshal(line, &doc); err != nil {
		return fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
	}
	text := doc.Line()
	if doc.Kind == "LostFlows" {
		text = fmt.Sprintf("… %s lost: they came faster than they were read", count(int(doc.Lost), "flow"))
	}
	_, err := fmt.Fprintln(out, printable(text))
	return err
}
