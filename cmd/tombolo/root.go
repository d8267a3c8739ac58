package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/cmd/internal/relay/pod"
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
	kube      kubeFlags
	output    string // "", json

	pods    *pod.Cluster    // once it is opened
	toAgent *http.Transport // once it is used
}

func newRoot(env environment) *cobra.Command { return (&cli{env: env}).root() }

func (c *cli) root() *cobra.Command {
	env := c.env
	root := &cobra.Command{
		Use:   "tombolo",
		Short: "Join Kubernetes clusters into one mesh, and see what it does",
		Long: `Tombolo joins clusters with mesh certificates, spreads global services over
them, and moves traffic when a cloud goes dark.

Nouns read (status, service, maps, mesh list), verbs change (mesh invite, join,
leave, remove). They ask this machine's agent and mesh API server, or with
--context those in the pods of a Kubernetes cluster. Every command that answers
takes -o json. Data goes to standard output, everything else to standard error.
Exit status: 0 done, 1 failed, 2 wrong usage.`,
		Example: `  sudo tombolo demo                    # two clouds and a failover, on this machine
  tombolo mesh invite                  # on cluster A: prints a one-time token
  tombolo mesh join TOKEN              # on cluster B
  tombolo mesh invite --context aws    # on a cluster of the kubeconfig
  tombolo status                       # what this node and its cluster know
  tombolo service explain shop/cart    # why traffic goes where it goes`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.DisableDefaultCmd = true // we have our own
	flags := root.PersistentFlags()
	flags.StringVar(&c.agent, "agent-socket", orDefault(env.Getenv("TOMBOLO_AGENT_SOCKET"), defaultAgentSocket), "Unix socket of this node's agent (TOMBOLO_AGENT_SOCKET)")
	flags.StringVar(&c.apiserver, "apiserver-socket", orDefault(env.Getenv("TOMBOLO_APISERVER_SOCKET"), defaultAPIServerSocket), "Unix socket of the cluster's mesh API server (TOMBOLO_APISERVER_SOCKET)")
	root.MarkPersistentFlagFilename("agent-socket")
	root.MarkPersistentFlagFilename("apiserver-socket")
	c.kubeFlags(root)
	root.SetHelpCommand(helpCommand())
	root.AddCommand(c.demoCommand(), c.meshCommand(), c.statusCommand(), c.serviceCommand(), c.endpointsCommand(), c.policyCommand(), c.flowsCommand(), c.mapsCommand(), c.nodeCommand(), c.installCommand(), c.upgradeCommand(), c.uninstallCommand(), c.checkCommand(), c.versionCommand(), completionCommand(env.Stdout))
	usageArgs(root)
	return root
}
