package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/cmd/internal/relay"
)

func relayCommand(stdout io.Writer) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:     "relay",
		Short:   "Join standard input and output to the admin socket",
		Long:    "relay is what \"tombolo --context\" runs inside the mesh API server's pod, by exec.\nIt says one line of its own; all that follows is the socket's.",
		Example: "  kubectl exec -i -n tombolo-system PODNAME -c apiserver -- tombolo-apiserver relay",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return relay.Run(cmd.Context(), socket, os.Stdin, stdout)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "/run/tombolo/apiserver.sock", "Unix socket of the admin calls")
	return cmd
}
