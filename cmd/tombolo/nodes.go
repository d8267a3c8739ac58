package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/cmd/internal/relay/pod"
)

// askedAtOnce bounds how many agents are asked at a time: each is an exec.
const askedAtOnce = 16

// nodeAnswers is how long one may take: a dead node, which is there for Kubernetes for
// most of a minute, is not what the others wait for.
const nodeAnswers = 5 * time.Second

// nodeUnmanaged is what the agent of a node says of pods that Tombolo has not
// connected, or why it did not answer.
type nodeUnmanaged struct {
	Node  string               `json:"node"`
	Pods  []agent.UnmanagedPod `json:"pods"`
	Error string               `json:"error,omitempty"`
}

// unmanagedEverywhere asks the agents of all nodes of the cluster, where a cluster
// is meant and no node of it. One that does not answer holds up none of the others,
// and is among the answers.
func (c *cli) unmanagedEverywhere(ctx context.Context) ([]nodeUnmanaged, error) {
	if !c.viaPods() || c.kube.node != "" {
		return nil, nil
	}
	cluster, err := c.cluster()
	if err != nil {
		return nil, err
	}
	targets, err := cluster.Find(ctx, pod.Agent, "")
	if err != nil {
		return nil, err
	}
	answers := make([]nodeUnmanaged, len(targets))
	turns := make(chan struct{}, askedAtOnce)
	var asking sync.WaitGroup
	for i, t := range targets {
		asking.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			answers[i] = c.askNode(ctx, cluster, t)
		})
	}
	asking.Wait()
	slices.SortFunc(answers, func(a, b nodeUnmanaged) int { return cmp.Compare(a.Node, b.Node) })
	return answers, nil
}

func (c *cli) askNode(ctx context.Context, cluster *pod.Cluster, t pod.Target) nodeUnmanaged {
	ctx, cancel := context.WithTimeoutCause(ctx, nodeAnswers, fmt.Errorf("no answer within %s", nodeAnswers))
	defer cancel()
	one := *c
	one.kube.node = t.Node
	one.toAgent = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return cluster.Dial(ctx, t) }}
	defer one.close()
	st, err := one.agentStatus(ctx)
	if err != nil {
		return nodeUnmanaged{Node: t.Node, Pods: []agent.UnmanagedPod{}, Error: firstLine(err)}
	}
	return nodeUnmanaged{Node: t.Node, Pods: append([]agent.UnmanagedPod{}, st.Unmanaged...)}
}

// printNodes says which pods of the cluster are not managed, and who was not asked.
func (c *cli) printNodes(nodes []nodeUnmanaged) {
	var pods []agent.UnmanagedPod
	for _, n := range nodes {
		pods = append(pods, n.Pods...)
	}
	out := c.env.Stdout
	fmt.Fprintln(out)
	if len(pods) == 0 {
		fmt.Fprintf(out, "No pod is without Tombolo, say the agents of %s\n", count(thatAnswered(nodes), "node"))
	} else {
		fmt.Fprintf(out, "NOT MANAGED: %s of the cluster, not connected by Tombolo\n", count(len(pods), "pod"))
		for _, n := range nodes {
			if len(n.Pods) > 0 {
				fmt.Fprintf(out, "  %s: %s\n", printable(n.Node), podNames(n.Pods))
			}
		}
		c.adviseUnmanaged()
	}
	for _, n := range nodes {
		if n.Error != "" {
			fmt.Fprintf(out, "  not known of node %s: %s\n", printable(n.Node), printable(n.Error))
		}
	}
}

func thatAnswered(nodes []nodeUnmanaged) (n int) {
	for _, one := range nodes {
		if one.Error == "" {
			n++
		}
	}
	return n
}

func podNames(pods []agent.UnmanagedPod) string {
	var names []string
	for _, p := range pods {
		names = append(names, printable(p.Namespace+"/"+p.Name))
	}
	return strings.Join(names, ", ")
}
