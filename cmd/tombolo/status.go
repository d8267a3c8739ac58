package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func (c *cli) statusCommand() *cobra.Command {
	return c.reads(&cobra.Command{
		Use:   "status",
		Short: "What this machine's agent and mesh API server know, and what is wrong",
		Long:  "Asks whichever of the two answers on its Unix socket: one is enough.",
		Example: `  tombolo status
  tombolo status -o json
  tombolo status --agent-socket /run/tombolo/agent.sock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			node, nodeErr := c.agentStatus(cmd.Context())
			server, serverErr := c.serverStatus(cmd.Context())
			if nodeErr != nil && serverErr != nil {
				return errors.Join(nodeErr, serverErr)
			}
			if c.output == "json" {
				doc := map[string]any{}
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
			if node != nil {
				return c.printAgent(node)
			}
			return nil
		},
	})
}

func (c *cli) agentStatus(ctx context.Context) (*agent.Status, error) {
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
	admin, done, err := c.admin()
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
	fmt.Fprintf(out, "Mesh API server of %s (ID %d): %s, %s\n", printable(s.Cluster.GetName()), s.Cluster.GetId(), role, orDefault(s.Version, "unknown version"))
	fmt.Fprintf(out, "  store        %s, revision %d, %d keys\n", printable(s.Store), s.Revision, s.Keys)
	fmt.Fprintf(out, "  CA           %s, own certificate until %s\n", s.Fingerprint, orDefault(timeText(s.CertificateExpires), "?"))
	fmt.Fprintf(out, "  records      %s\n", orDefault(countsText(s.Records), "none"))
	fmt.Fprintf(out, "  nodes        %s\n", orDefault(printable(strings.Join(s.Nodes, ", ")), "none registered"))
	c.printProblems(serverProblems(s))
	if len(s.Peers) > 0 {
		fmt.Fprintln(out)
		if err := table(out, "PEER ID REACHABLE READERS POD-PREFIXES FINGERPRINT AGE", peerRows(s.Peers)); err != nil {
			return err
		}
	}
	fmt.Fprintln(out)
	return nil
}

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
	fmt.Fprintf(out, "Agent of %s/%s (cluster ID %d): %s, up %s\n", printable(s.Cluster), printable(s.Node), s.ClusterID, ready, span(time.Since(s.Started)))
	fmt.Fprintf(out, "  %d services, %d pods here; %d nodes probed every %d ms, %d down\n", s.Services, s.Pods, s.Health.Targets, s.Health.IntervalMS, s.Health.NodesDown)
	var details []string
	for name := range s.Details {
		details = append(details, name)
	}
	sort.Strings(details)
	for _, name := range details {
		fmt.Fprintf(out, "  %-12s %s\n", printable(name), printable(s.Details[name]))
	}
	c.printProblems(s.Problems)
	var rows [][]string
	for _, cl := range s.Clusters {
		rows = append(rows, []string{cl.Name, fmt.Sprint(cl.ID), knownText(cl), pathText(cl), fmt.Sprint(cl.Nodes), fmt.Sprint(cl.Records), refusedText(cl.Refused), fmt.Sprint(cl.Revision)})
	}
	fmt.Fprintln(out)
	if err := table(out, "CLUSTER ID CONTROL DATA-PATH NODES RECORDS REFUSED REVISION", rows); err != nil {
		return err
	}
	rows = nil
	for _, t := range s.Tables {
		rows = append(rows, []string{t.Name, fmt.Sprint(t.Wanted), fmt.Sprint(t.Pending), fmt.Sprint(t.Held), fmt.Sprint(t.Errors)})
	}
	fmt.Fprintln(out)
	return table(out, "TABLE ROWS PENDING HELD ERRORS", rows)
}

// knownText says how far what is known of a cluster can be relied on.
func knownText(cl agent.ClusterStatus) string {
	switch {
	case cl.Connected && cl.Synced:
		return "synced"
	case cl.StaleSince != nil && (cl.Synced || cl.FromSnapshot):
		return "stale-" + span(time.Since(*cl.StaleSince))
	case cl.FromSnapshot:
		return "from-snapshot"
	}
	return "not-synced"
}

func pathText(cl agent.ClusterStatus) string {
	switch {
	case cl.Local && len(cl.NodesDown) == 0:
		return "local"
	case cl.Down:
		return "DOWN"
	case len(cl.NodesDown) > 0:
		return fmt.Sprintf("%d-nodes-down", len(cl.NodesDown))
	}
	return "up"
}

func refusedText(refused map[string]uint64) string {
	var total uint64
	for _, n := range refused {
		total += n
	}
	return fmt.Sprint(total)
}

func (c *cli) printProblems(problems []agent.ProblemStatus) {
	for _, p := range problems {
		fmt.Fprintf(c.env.Stdout, "  PROBLEM      %s\n", printable(p.What))
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
		what := p.What
		if p.Object != "" && !strings.Contains(what, p.Object) {
			what = p.Object + ": " + what
		}
		problems = append(problems, agent.ProblemStatus{What: what, Why: p.Why, Fix: p.Fix})
	}
	return problems
}

func serverJSON(s *pb.StatusResponse) map[string]any {
	peers := []map[string]any{}
	for _, p := range s.Peers {
		peers = append(peers, peerJSON(p))
	}
	return map[string]any{"cluster": s.Cluster.GetName(), "clusterID": s.Cluster.GetId(), "leader": s.Leader, "version": s.Version,
		"fingerprint": s.Fingerprint, "certificateExpires": timeText(s.CertificateExpires), "store": s.Store,
		"storeID": fmt.Sprintf("%x", s.StoreId), "revision": s.Revision, "keys": s.Keys, "records": s.Records,
		"nodes": s.Nodes, "peers": peers, "problems": serverProblems(s)}
}
