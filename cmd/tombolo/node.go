package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func (c *cli) nodeCommand() *cobra.Command {
	var ttl time.Duration
	invite := &cobra.Command{
		Use:   "invite NODE",
		Short: "Print a one-time token with which a node's agent gets its certificate",
		Long:  "On Kubernetes agents come with their pod's token and need none of this. Elsewhere\nwrite the token to a file and start the agent with --token-file.",
		Example: `  tombolo node invite n1 > token
  tombolo-agent --node n1 --token-file token    # on node n1`,
		Args: oneArg("NODE, its name as the cluster has it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, done, err := c.admin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			res, err := admin.NodeToken(cmd.Context(), &pb.NodeTokenRequest{Node: args[0], TtlSeconds: int64(ttl.Seconds())})
			if err != nil {
				return rpcError(err)
			}
			if c.output == "json" {
				return c.printJSON("NodeToken", map[string]any{"node": args[0], "token": res.Token, "expires": timeText(res.Expires)})
			}
			fmt.Fprintln(c.env.Stdout, res.Token)
			fmt.Fprintf(c.env.Stderr, "for node %s alone, good once, until %s\non that node write it to a file and run: tombolo-agent --node %s --token-file FILE\n",
				printable(args[0]), timeText(res.Expires), printable(args[0]))
			return nil
		},
	}
	invite.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token is good")
	return group("node", "Bring a node's agent into this cluster", "Tokens for nodes outside Kubernetes.", "  tombolo node invite n1 > token", c.answers(invite))
}
