package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/cmd/internal/relay"
)

func newRelay() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Join standard input and output to the agent's socket",
		Long: `relay is what "tombolo --context" runs inside the agent's pod, by exec. It says one line
of its own; all that follows is the socket's.`,
		Example: "  kubectl exec -i -n tombolo-system PODNAME -c agent -- tombolo-agent relay",
		Args:    cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return relay.Run(cmd.Context(), socket, os.Stdin, os.Stdout)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "/run/tombolo/agent.sock", "`PATH` of the Unix socket of the API")
	return cmd
}
