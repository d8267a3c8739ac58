package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/deploy/request"
)

// The four commands below parse what is typed and leave the work to a program
// that carries Helm; see package request.

func (c *cli) installCommand() *cobra.Command {
	r := request.Request{Verb: "install"}
	cmd := &cobra.Command{
		Use:   "install --set cluster.name=NAME --set cluster.id=NUMBER",
		Short: "Install Tombolo into a Kubernetes cluster",
		Long: `Installs the Helm chart that comes with this program, of the same version, through
Helm's own library: 'helm list' shows it, and helm can go on from there. The namespace
is made if it is missing. Nothing is asked; what to do next is said.

The values are in deploy/chart/values.yaml. Name and number of the cluster must be
given and be unique in the mesh. Run 'tombolo check --pre' first.`,
		Example: `  tombolo install --context aws --set cluster.name=aws --set cluster.id=1
  tombolo install --context aws -f values.yaml --wait
  tombolo install --context aws -f values.yaml --dry-run > objects.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.askInstaller(cmd.Context(), r) },
	}
	chartFlags(cmd, &r)
	return cmd
}

func (c *cli) upgradeCommand() *cobra.Command {
	r := request.Request{Verb: "upgrade"}
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring Tombolo in a Kubernetes cluster to this version, or change its values",
		Long: `Values that were set before stay set; those given here are set in addition. Connections
go on: what is in the kernels stays there while the agents are replaced, a few nodes at
a time, and tunnel pods are not touched. The way back is the same command of the version
before, or 'helm rollback'.`,
		Example: `  tombolo upgrade --context aws --wait
  tombolo upgrade --context aws --set agent.encrypt=all`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.askInstaller(cmd.Context(), r) },
	}
	chartFlags(cmd, &r)
	return cmd
}

func (c *cli) uninstallCommand() *cobra.Command {
	r := request.Request{Verb: "uninstall"}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take Tombolo off every node and out of a Kubernetes cluster",
		Long: `First a pod on each node, in place of the agent, takes programs, maps, routes, devices,
the CNI configuration and the state folder away; then the release goes. A node that
cannot be cleaned stops it, unless --force is given. Pods that Tombolo gave an interface
lose their network. Run 'tombolo mesh leave' before, so that peers know.`,
		Example: `  tombolo mesh leave --context aws
  tombolo uninstall --context aws
  tombolo uninstall --context aws --keep-state   # it comes back as the same cluster`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.askInstaller(cmd.Context(), r) },
	}
	f := cmd.Flags()
	f.BoolVar(&r.DryRun, "dry-run", false, "change nothing, say what would be done")
	f.BoolVar(&r.Force, "force", false, "go on although a node cannot be cleaned")
	f.BoolVar(&r.KeepState, "keep-state", false, "leave keys, certificates and addresses in the nodes' state folders")
	f.DurationVar(&r.Timeout, "timeout", 5*time.Minute, "how long the nodes may take")
	return cmd
}

func (c *cli) checkCommand() *cobra.Command {
	r := request.Request{Verb: "check"}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Look whether a Kubernetes cluster can have Tombolo, or whether all of it runs",
		Long: `With --pre, before an installation: versions of Kubernetes, of kernels and container
runtimes, other CNI plugins, pod prefixes that overlap, ports that pods hold, rights of
the user; and, as unknown, what only nodes could tell: their own listeners, their bpffs.
Nothing is made in the cluster. Without it: whether every part of the installation runs,
on every node. Each finding comes with what to do about it; the exit status is 1 if one
of them is in the way.`,
		Example: `  tombolo check --pre --context aws
  tombolo check --context aws`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.JSON = c.output == "json"
			return c.askInstaller(cmd.Context(), r)
		},
	}
	cmd.Flags().BoolVar(&r.Pre, "pre", false, "before an installation")
	cmd.Flags().StringArrayVar(&r.Set, "set", nil, "`KEY=VALUE` of the chart that it will be installed with, repeatable")
	cmd.Flags().StringArrayVarP(&r.Files, "values", "f", nil, "`FILE` of values that it will be installed with, repeatable")
	return c.answers(cmd)
}

func chartFlags(cmd *cobra.Command, r *request.Request) {
	f := cmd.Flags()
	f.StringArrayVar(&r.Set, "set", nil, "`KEY=VALUE` of the chart, repeatable")
	f.StringArrayVarP(&r.Files, "values", "f", nil, "`FILE` of values, repeatable")
	f.BoolVar(&r.Wait, "wait", false, "wait until all of it runs")
	f.DurationVar(&r.Timeout, "timeout", 5*time.Minute, "how long to wait")
	f.BoolVar(&r.DryRun, "dry-run", false, "change nothing, print the objects")
	cmd.MarkFlagFilename("values", "yaml", "yml", "json")
}

// askInstaller starts the program and has its exit status.
func (c *cli) askInstaller(ctx context.Context, r request.Request) error {
	r.Version, r.Kubeconfigs, r.Context, r.Namespace = version, c.kubeconfigs(), c.kube.context, c.kube.namespace
	arg, err := r.Argument()
	if err != nil {
		return err
	}
	self, _ := os.Executable()
	path, err := request.Find(self)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, arg)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.env.Stdin, c.env.Stdout, c.env.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // Helm ends in order
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return errAnswered
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
