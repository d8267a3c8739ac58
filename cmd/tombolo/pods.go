package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/cmd/internal/relay/pod"
)

const defaultNamespace = "tombolo-system"

// kubeFlags say which cluster's pods are asked instead of this machine's sockets.
// All empty = those of this machine.
type kubeFlags struct {
	context, kubeconfig, namespace, node string
}

func (c *cli) kubeFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&c.kube.context, "context", "", "ask the pods of the cluster that this `NAME` of the kubeconfig stands for, by exec, instead of this machine")
	f.StringVar(&c.kube.kubeconfig, "kubeconfig", "", "`FILE` that names clusters (default: KUBECONFIG, else ~/.kube/config)")
	f.StringVarP(&c.kube.namespace, "namespace", "n", "", "`NAMESPACE` of Tombolo in that cluster (default "+defaultNamespace+")")
	f.StringVar(&c.kube.node, "node", "", "`NAME` of the node whose agent is asked in that cluster")
	root.MarkPersistentFlagFilename("kubeconfig")
	root.RegisterFlagCompletionFunc("context", c.completeContexts)
	root.RegisterFlagCompletionFunc("node", c.completeNodes)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range []string{"agent-socket", "apiserver-socket"} {
			if c.viaPods() && f.Changed(name) {
				return usageError{fmt.Errorf("--%s is a socket of this machine, and --context, --kubeconfig, --namespace and --node ask another: give one or the other", name)}
			}
		}
		return nil
	}
}

// viaPods: the sockets are in pods.
func (c *cli) viaPods() bool { return c.kube != kubeFlags{} }

// kubeconfigs are the files that name clusters, as kubectl finds them.
func (c *cli) kubeconfigs() []string {
	if c.kube.kubeconfig != "" {
		return []string{c.kube.kubeconfig}
	}
	if list := c.env.Getenv("KUBECONFIG"); list != "" {
		return filepath.SplitList(list)
	}
	return []string{filepath.Join(c.env.Getenv("HOME"), ".kube", "config")}
}

// cluster opens the cluster that the flags name, once.
func (c *cli) cluster() (*pod.Cluster, error) {
	if c.pods != nil {
		return c.pods, nil
	}
	var err error
	c.pods, err = pod.Open(pod.Config{Kubeconfig: c.kubeconfigs(), Context: c.kube.context, Namespace: orDefault(c.kube.namespace, defaultNamespace)})
	return c.pods, err
}

// dialAgentPod reaches the socket of the agent on --node.
func (c *cli) dialAgentPod(ctx context.Context) (net.Conn, error) {
	cluster, err := c.cluster()
	if err != nil {
		return nil, err
	}
	targets, err := cluster.Find(ctx, pod.Agent, c.kube.node)
	if err != nil {
		return nil, err
	}
	if c.kube.node == "" && len(targets) > 1 {
		var names []string
		for _, t := range targets {
			names = append(names, t.Node)
		}
		return nil, usageError{fmt.Errorf("%d nodes have an agent there: give --node, one of %s", len(names), strings.Join(names, ", "))}
	}
	return cluster.Dial(ctx, targets[0])
}

// replica is what became of reaching one mesh API server.
type replica struct {
	admin pb.AdminClient
	end   func()
	leads bool
	err   error
}

// adminPod connects to the admin socket of the mesh API server that leads; if
// none does, to one that answers: all but held deletes can be done at any. All are
// asked at once, as one on a node that has just lost its power answers nobody, and
// is ready for Kubernetes for most of a minute.
func (c *cli) adminPod(ctx context.Context) (pb.AdminClient, func(), error) {
	cluster, err := c.cluster()
	if err != nil {
		return nil, nil, err
	}
	targets, err := cluster.Find(ctx, pod.APIServer, "")
	if err != nil {
		return nil, nil, err
	}
	asking, enough := context.WithCancel(ctx)
	defer enough()
	replicas := make(chan replica, len(targets))
	for _, t := range targets {
		go func() { replicas <- reachReplica(asking, cluster, t, len(targets) == 1) }()
	}
	var errs []error
	var best *replica
	for left := len(targets) - 1; left >= 0; left-- {
		r := <-replicas
		switch {
		case r.err != nil:
			errs = append(errs, r.err)
		case r.leads:
			if best != nil {
				best.end()
			}
			go endAll(replicas, left)
			return r.admin, r.end, nil
		case best == nil:
			best = &r
		default:
			r.end()
		}
	}
	if best == nil {
		return nil, nil, errors.Join(errs...)
	}
	return best.admin, best.end, nil
}

// reachReplica connects to one mesh API server and asks whether it leads; the only
// one is taken for the leader.
func reachReplica(ctx context.Context, cluster *pod.Cluster, t pod.Target, only bool) replica {
	conn, err := cluster.Dial(ctx, t)
	if err != nil {
		return replica{err: err}
	}
	admin, end, err := adminOver(conn)
	if err != nil {
		return replica{err: err}
	}
	return replica{admin: admin, end: end, leads: only || leads(ctx, admin)}
}

// endAll takes what nobody waits for any more.
func endAll(replicas <-chan replica, n int) {
	for range n {
		if r := <-replicas; r.err == nil {
			r.end()
		}
	}
}

func leads(ctx context.Context, admin pb.AdminClient) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	st, err := admin.Status(ctx, &pb.StatusRequest{})
	return err == nil && st.Leader
}

// adminOver makes the admin calls over one connection, and dials no other.
func adminOver(conn net.Conn) (pb.AdminClient, func(), error) {
	first := make(chan net.Conn, 1)
	first <- conn
	cc, err := grpc.NewClient("passthrough:///pod", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-first:
				return c, nil
			default:
				return nil, errors.New("the connection through the pod has ended")
			}
		}))
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return pb.NewAdminClient(cc), func() {
		cc.Close()
		conn.Close()
	}, nil
}

// completeContexts offers the contexts of the kubeconfig.
func (c *cli) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	names, _ := pod.Contexts(c.kubeconfigs())
	var out []string
	for _, name := range names {
		out = appendPlain(out, name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeNodes offers the nodes that have an agent.
func (c *cli) completeNodes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	cluster, err := c.cluster()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	targets, _ := cluster.Find(cmd.Context(), pod.Agent, "")
	var out []string
	for _, t := range targets {
		out = appendPlain(out, t.Node)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
