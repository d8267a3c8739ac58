package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
)

// Where agent and mesh API server listen unless told otherwise.
const (
	defaultAgentSocket     = "/run/tombolo/agent.sock"
	defaultAPIServerSocket = "/run/tombolo/apiserver.sock"
)

// cli is what all commands share.
type cli struct {
	env       environment
	agent     string // socket
	apiserver string // socket
	output    string // "", json
}

func newRoot(env environment) *cobra.Command {
	c := &cli{env: env}
	root := &cobra.Command{
		Use:   "tombolo",
		Short: "Join Kubernetes clusters into one mesh, and see what it does",
		Long: `Tombolo joins clusters with mesh certificates, spreads global services over
them, and moves traffic when a cloud goes dark.

Nouns read (status, service, maps), verbs change (mesh invite, join, leave, remove).`,
		Example: `  sudo tombolo demo                    # two clouds, one service, failover, on this machine
  tombolo mesh invite                  # on cluster A: prints a one-time token
  tombolo mesh join TOKEN              # on cluster B
  tombolo status                       # what this node and its cluster know
  tombolo service explain shop/cart    # why traffic goes where it goes`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          func(cmd *cobra.Command, args []string) error { return unknownCommand(cmd, args) },
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&c.agent, "agent-socket", orDefault(env.Getenv("TOMBOLO_AGENT_SOCKET"), defaultAgentSocket), "Unix socket of this node's agent (TOMBOLO_AGENT_SOCKET)")
	flags.StringVar(&c.apiserver, "apiserver-socket", orDefault(env.Getenv("TOMBOLO_APISERVER_SOCKET"), defaultAPIServerSocket), "Unix socket of the cluster's mesh API server (TOMBOLO_APISERVER_SOCKET)")
	root.AddCommand(c.demoCommand(), c.meshCommand(), c.statusCommand(), c.serviceCommand(), c.mapsCommand(), c.nodeCommand(), c.versionCommand())
	usageArgs(root)
	return root
}

// usageArgs marks every argument mistake in the tree as wrong usage.
func usageArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		usageArgs(sub)
	}
}

// group is a command that only holds others.
func group(use, short, long string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(subs...)
	return cmd
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("%s", text)
}

// reads adds -o to a command that reads.
func (c *cli) reads(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&c.output, "output", "o", "", "json, or nothing for people")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
	pre := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if c.output != "" && c.output != "json" {
			return usageError{fmt.Errorf("unknown output %q: want json, or leave it out", c.output)}
		}
		if pre != nil {
			return pre(cmd, args)
		}
		return nil
	}
	return cmd
}

// printJSON writes a versioned JSON document.
func (c *cli) printJSON(kind string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	doc := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &doc); err != nil {
		doc = map[string]json.RawMessage{"items": raw}
	}
	if _, ok := doc["apiVersion"]; !ok {
		doc["apiVersion"] = json.RawMessage(`"tombolo.io/v1"`)
		doc["kind"], _ = json.Marshal(kind)
	}
	e := json.NewEncoder(c.env.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}

// table prints rows under a header, in columns.
func table(w io.Writer, header string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(header, " ", "\t"))
	for _, row := range rows {
		for i := range row {
			row[i] = printable(row[i])
			if row[i] == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// printable escapes control characters: names come from other clusters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
