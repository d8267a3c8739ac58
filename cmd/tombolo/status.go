package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func (c *cli) statusCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:   "status",
		Short: "What this machine's agent and mesh API server know, and what is wrong",
		Long: `Asks whichever of the two answers on its Unix socket: one is enough. With --context
the cluster's mesh API server is asked, and with --node that node's agent.

CONTROL says how far what is known of a cluster can be relied on: synced; stale,
with since when it is not in reach (what is known stays in force); from snapshot
(read from disk at the start); not synced. DATA PATH is what this node's own
probes through the tunnel say. REFUSED are records that were not believed. Rows
PENDING differ in the kernel, rows HELD are kept until their cluster is synced. Pods
NOT MANAGED run on this node without Tombolo; its own are counted by their state,
and 'tombolo endpoints' lists them. With --context and without --node the agents of
all nodes are asked for pods that are not managed, and for no more.`,
		Example: `  tombolo status
  tombolo status -o json
  tombolo status --agent-socket /run/tombolo/agent.sock
  tombolo status --context aws --node worker-1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			node, nodeErr := c.agentStatus(cmd.Context())
			server, serverErr := c.serverStatus(cmd.Context())
			if nodeErr != nil && serverErr != nil {
				return errors.Join(nodeErr, serverErr)
			}
			nodes, err := c.unmanagedEverywhere(cmd.Context())
			if err != nil {
				fmt.Fprintf(c.env.Stderr, "whether pods are not managed is not known: %s\n", firstLine(err))
			}
			if c.output == "json" {
				doc := map[string]any{}
				if nodes != nil {
					doc["nodes"] = nodes
				}
				if node != nil {
					doc["agent"] = node
				}
				if server != nil {
					doc["apiserver"] = serverJSON(server)
				}
				return c.printJSON("Status", doc)
			}
			if server != nil {
				if err := c.printServer(server); err != nil {
					return err
				}
			}
			if nodes != nil {
				c.printNodes(nodes)
			}
			if node == nil {
				fmt.Fprintf(c.env.Stderr, "\nno agent asked: %s\n", firstLine(nodeErr))
				return nil
			}
			if server != nil {
				fmt.Fprintln(c.env.Stdout)
			}
			return c.printAgent(node)
		},
	})
}

// meshStatusCommand is the half of status that concerns the cluster.
func (c *cli) meshStatusCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:   "status",
		Short: "What this cluster's mesh API server knows, and what is wrong",
		Long: `The mesh API server's part of 'tombolo status': its store, CA, nodes and peers. Of
several replicas reached with --context, the one that leads is asked.

MESHPEER are the resources of that kind in Tombolo's namespace: whether each joins
by a token, invites, or stands for a peer that was joined by hand, and its
conditions. What is not as it should be is explained below them.`,
		Example: `  tombolo mesh status
  tombolo mesh status --context gcp`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := c.serverStatus(cmd.Context())
			if err != nil {
				return err
			}
			if c.output == "json" {
				return c.printJSON("MeshStatus", serverJSON(server))
			}
			return c.printServer(server)
		},
	})
}

func (c *cli) agentStatus(ctx context.Context) (*agent.Status, error) {
	if c.viaPods() && c.kube.node == "" {
		return nil, errors.New("give --node NAME to ask the agent of a node")
	}
	body, err := c.getAgent(ctx, "/v1/status")
	if err != nil {
		return nil, err
	}
	var st agent.Status
	if err := json.Unmarshal(body, &st); err != nil {
		return nil, fmt.Errorf("answer of the agent is not understood (another version?): %w", err)
	}
	return &st, nil
}

func (c *cli) serverStatus(ctx context.Context) (*pb.StatusResponse, error) {
	admin, done, err := c.admin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := admin.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return nil, rpcError(err)
	}
	return res, nil
}

func (c *cli) printServer(s *pb.StatusResponse) error {
	out := c.env.Stdout
	role := "follows the leader"
	if s.Leader {
		role = "leader"
	}
	problems := serverProblems(s)
	fmt.Fprintf(out, "Mesh API server of %s (cluster ID %d): %s, %s\n", printable(s.Cluster.GetName()), s.Cluster.GetId(), role, problemCount(problems))
	c.printProblems(problems)
	fmt.Fprintf(out, "  version      %s\n", orDefault(printable(s.Version), "unknown"))
	fmt.Fprintf(out, "  store        %s, revision %d, %d keys\n", printable(s.Store), s.Revision, s.Keys)
	if s.Fingerprint == "" {
		fmt.Fprintln(out, "  CA           none yet")
	} else {
		fmt.Fprintf(out, "  CA           %s, own certificate until %s\n", s.Fingerprint, orDefault(timeText(s.CertificateExpires), "?"))
	}
	fmt.Fprintf(out, "  records      %s\n", orDefault(countsText(s.Records), "none"))
	fmt.Fprintf(out, "  nodes        %s\n", orDefault(printable(strings.Join(s.Nodes, ", ")), "none registered"))
	drains := make([]agent.DrainStatus, len(s.Drains))
	for i, d := range s.Drains {
		drains[i] = drainOf(d)
	}
	c.printDrains(drains)
	if len(s.Peers) == 0 {
		fmt.Fprintln(out, "  peers        none; run 'tombolo mesh invite' here and 'tombolo mesh join' there")
	} else {
		fmt.Fprintln(out)
		if err := c.printPeers(s.Peers); err != nil {
			return err
		}
	}
	return c.printMeshPeers(s.MeshPeers)
}

// printGossip says how many of the cluster's agents this one sees, and who found
// which nodes down.
func printGossip(out io.Writer, h agent.HealthStatus) {
	if g := h.Gossip; g != nil {
		what := fmt.Sprintf("%s chosen for this agent", count(g.Chosen, "node"))
		if !g.Verdicts {
			what = "too few for verdicts: its own probes judge alone"
		}
		fmt.Fprintf(out, "  %-12s %d of %s seen; %s\n", "gossip", g.Members, count(g.Nodes, "agent"), what)
	}
	for i, d := range h.Down {
		if i == mostDown {
			fmt.Fprintf(out, "  %-12s … and %d more\n", "down", len(h.Down)-mostDown)
			break
		}
		by := "this node's own probes"
		if len(d.By) > 0 {
			by = "the probes of " + strings.Join(d.By, ", ")
		}
		fmt.Fprintf(out, "  %-12s %s, by %s\n", "down", printable(d.Cluster+"/"+d.Node), printable(by))
	}
}

// mostDown bounds the list of nodes that are down: in a large mesh a whole cluster
// may be.
const mostDown = 10

func countsText(counts map[string]int64) string {
	var parts []string
	for name, n := range counts {
		parts = append(parts, fmt.Sprintf("%d %s", n, name))
	}
	sort.Slice(parts, func(i, j int) bool {
		return parts[i][strings.IndexByte(parts[i], ' '):] < parts[j][strings.IndexByte(parts[j], ' '):]
	})
	return strings.Join(parts, ", ")
}

func (c *cli) printAgent(s *agent.Status) error {
	out := c.env.Stdout
	ready := "ready"
	if !s.Ready {
		ready = "not ready"
	}
	fmt.Fprintf(out, "Agent of %s/%s (cluster ID %d): %s, up %s, %s\n", printable(s.Cluster), printable(s.Node), s.ClusterID, ready, c.span(s.Started), problemCount(s.Problems))
	c.printProblems(s.Problems)
	if len(s.Unmanaged) > 0 {
		c.printUnmanaged(s.Unmanaged)
	}
	fmt.Fprintf(out, "  %-12s %s, %s on this node\n", "holds", count(s.Services, "service"), count(s.Pods, "pod"))
	fmt.Fprintf(out, "  %-12s %s\n", "endpoints", endpointCounts(s.Endpoints))
	fmt.Fprintf(out, "  %-12s %s every %d ms, %d down; %d sent, %d missed\n", "probes", count(s.Health.Targets, "node"), s.Health.IntervalMS, s.Health.NodesDown, s.Health.Probes, s.Health.Misses)
	printGossip(out, s.Health)
	c.printDrains(s.Drains)
	printGateways(out, s.Clusters)
	var details []string
	for name := range s.Details {
		details = append(details, name)
	}
	sort.Strings(details)
	for _, name := range details {
		fmt.Fprintf(out, "  %-12s %s\n", printable(name), printable(s.Details[name]))
	}
	var rows [][]string
	for _, cl := range s.Clusters {
		rows = append(rows, []string{cl.Name, fmt.Sprint(cl.ID), c.knownText(cl), pathText(cl), rttText(cl.Path.RoundTripMS), lossText(cl.Path.LossPercent), fmt.Sprintf("%d/%d", cl.Nodes-len(cl.NodesDown), cl.Nodes), fmt.Sprint(cl.Records), refusedText(cl.Refused), fmt.Sprint(cl.Revision)})
	}
	fmt.Fprintln(out)
	if err := table(out, "CLUSTER ID CONTROL DATA-PATH RTT LOSS NODES-UP RECORDS REFUSED REVISION", rows); err != nil {
		return err
	}
	rows = nil
	for _, t := range s.Tables {
		rows = append(rows, []string{t.Name, fmt.Sprint(t.Wanted), fmt.Sprint(t.Pending), fmt.Sprint(t.Held), fmt.Sprint(t.Errors)})
	}
	fmt.Fprintln(out)
	return table(out, "TABLE ROWS PENDING HELD ERRORS", rows)
}

// printGateways says which gateways carry what, a line for each cluster that has them.
func printGateways(out io.Writer, clusters []agent.ClusterStatus) {
	for _, c := range clusters {
		if c.Topology != "gateway" {
			continue
		}
		names := []string{}
		for _, g := range c.Gateways {
			state := " for " + count(g.Nodes, "node")
			if g.Down {
				state = " DOWN"
			}
			names = append(names, printable(g.Name)+state)
		}
		text := printable(c.Name) + ": " + cmp.Or(strings.Join(names, ", "), "none")
		if c.Gateway != "" {
			text += "; this node by " + printable(c.Gateway)
		}
		fmt.Fprintf(out, "  %-12s %s\n", "gateways", text)
	}
}

// knownText says how far what is known of a cluster can be relied on.
func (c *cli) knownText(cl agent.ClusterStatus) string {
	since := ""
	if cl.StaleSince != nil {
		since = " for " + c.span(*cl.StaleSince)
	}
	switch {
	case cl.Connected && cl.Synced:
		return "synced"
	case cl.Connected && cl.FromSnapshot:
		return "from snapshot, syncing"
	case cl.Connected:
		return "syncing"
	case cl.FromSnapshot:
		return "stale" + since + ", from snapshot"
	case cl.Synced:
		return "stale" + since
	}
	return "not synced" + since
}

// pathText is the verdict of this node's probes.
func pathText(cl agent.ClusterStatus) string {
	switch {
	case cl.Down:
		return "DOWN"
	case len(cl.NodesDown) > 0:
		return "down to " + strings.Join(cl.NodesDown, ",")
	case cl.Local:
		return "up (own)"
	case cl.Nodes == 0:
		return "no nodes"
	}
	return "up"
}

// rttText is a round trip in milliseconds, to three digits.
func rttText(ms *float64) string {
	if ms == nil {
		return "-"
	}
	if *ms >= 100 {
		return fmt.Sprintf("%.0fms", *ms)
	}
	return fmt.Sprintf("%.3gms", *ms)
}

// lossText is a share of probes. Not quite nothing is never shown as nothing.
func lossText(percent *float64) string {
	switch {
	case percent == nil:
		return "-"
	case *percent > 0 && *percent < 0.1:
		return "<0.1%"
	}
	return fmt.Sprintf("%.3g%%", *percent)
}

// refusedText is a total and its reasons.
func refusedText(refused map[string]uint64) string {
	var total uint64
	var parts []string
	for reason, n := range refused {
		total += n
		parts = append(parts, fmt.Sprintf("%s %d", reason, n))
	}
	if total == 0 {
		return "0"
	}
	sort.Strings(parts)
	return fmt.Sprintf("%d (%s)", total, strings.Join(parts, ", "))
}

func problemCount(problems []agent.ProblemStatus) string {
	if len(problems) == 0 {
		return "no problems"
	}
	return strings.ToUpper(count(len(problems), "problem"))
}

func (c *cli) printProblems(problems []agent.ProblemStatus) {
	for _, p := range problems {
		fmt.Fprintf(c.env.Stdout, "  PROBLEM: %s\n", printable(p.What))
		if p.Why != "" {
			fmt.Fprintf(c.env.Stdout, "    cause: %s\n", printable(p.Why))
		}
		if p.Fix != "" {
			fmt.Fprintf(c.env.Stdout, "    fix:   %s\n", printable(p.Fix))
		}
	}
}

func serverProblems(s *pb.StatusResponse) []agent.ProblemStatus {
	problems := []agent.ProblemStatus{}
	for _, p := range s.Problems {
		problems = append(problems, serverProblem(p))
	}
	return problems
}

func serverProblem(p *pb.Problem) agent.ProblemStatus {
	what := p.What
	if p.Object != "" && !strings.Contains(what, p.Object) {
		what = p.Object + ": " + what
	}
	return agent.ProblemStatus{What: what, Why: p.Why, Fix: p.Fix}
}

func serverJSON(s *pb.StatusResponse) map[string]any {
	peers := []map[string]any{}
	for _, p := range s.Peers {
		peers = append(peers, peerJSON(p))
	}
	return map[string]any{"cluster": s.Cluster.GetName(), "clusterID": s.Cluster.GetId(), "leader": s.Leader, "version": s.Version,
		"fingerprint": s.Fingerprint, "certificateExpires": timeText(s.CertificateExpires), "store": s.Store,
		"storeID": fmt.Sprintf("%x", s.StoreId), "revision": s.Revision, "keys": s.Keys, "records": s.Records,
		"nodes": s.Nodes, "peers": peers, "meshPeers": meshPeersJSON(s.MeshPeers), "drains": drainsJSON(s.Drains), "problems": serverProblems(s)}
}
