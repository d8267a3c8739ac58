package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func (c *cli) meshCommand() *cobra.Command {
	return group("mesh", "Invite, join, drain, leave, remove and list clusters",
		"A mesh is all clusters that follow one another. These commands talk to the\nmesh API server of one cluster, on its Unix socket or, with --context, in its pod;\nneither operator needs credentials in the other cluster.",
		"  tombolo mesh invite          # on one cluster: prints a one-time token\n  tombolo mesh join TOKEN      # on the other\n  tombolo mesh join --context gcp $(tombolo mesh invite --context aws)\n  tombolo mesh list\n  tombolo mesh drain gcp       # before its maintenance",
		c.inviteCommand(), c.joinCommand(), c.drainCommand(), c.undrainCommand(), c.leaveCommand(), c.removeCommand(), c.listCommand(), c.meshStatusCommand(),
		c.recordsCommand(), c.confirmCommand())
}

func (c *cli) inviteCommand() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "invite",
		Short: "Print a one-time token with which another cluster can join this one",
		Long:  "The token holds this cluster's mesh address, the fingerprint of its CA, a secret\nand an end. It works once. Compare the fingerprint with what the other side shows.",
		Example: `  tombolo mesh invite
  tombolo mesh invite --ttl 1h
  TOKEN=$(tombolo mesh invite -o json | jq -r .token)`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, done, err := c.admin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			res, err := admin.Invite(cmd.Context(), &pb.InviteRequest{TtlSeconds: int64(ttl.Seconds())})
			if err != nil {
				return rpcError(err)
			}
			expires := time.Unix(0, res.Expires)
			if c.output == "json" {
				return c.printJSON("Invitation", map[string]any{"token": res.Token, "fingerprint": res.Fingerprint,
					"cluster": res.Cluster, "address": res.Address, "expires": expires.UTC().Format(time.RFC3339)})
			}
			fmt.Fprintln(c.env.Stdout, res.Token)
			fmt.Fprintf(c.env.Stderr, "cluster %s at %s, good once, until %s\nCA fingerprint: %s\non the other cluster run: tombolo mesh join TOKEN\n",
				res.Cluster, res.Address, timeText(res.Expires), res.Fingerprint)
			return nil
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token is good")
	return c.answers(cmd)
}

func (c *cli) joinCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Join the cluster that issued TOKEN",
		Long: `Both directions are dialled and everything is checked before either side stores
anything: names, IDs, pod prefixes, clocks, versions. A join that fails half way is
undone. In a mesh of more than two clusters, join each of the others.`,
		Example: `  tombolo mesh join tombolo-join-…
  tombolo mesh join --dry-run tombolo-join-…   # only the checks`,
		Args:              oneArg("TOKEN, as 'tombolo mesh invite' printed it on the other cluster"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, done, err := c.admin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			res, err := admin.JoinMesh(cmd.Context(), &pb.JoinMeshRequest{Token: args[0], DryRun: dryRun})
			if err != nil {
				return rpcError(err)
			}
			if c.output == "json" {
				return c.printJSON("Join", map[string]any{"cluster": res.Cluster, "fingerprint": res.Fingerprint,
					"ownFingerprint": res.OwnFingerprint, "checks": res.Checks, "existing": res.Existing, "dryRun": dryRun})
			}
			for _, check := range res.Checks {
				fmt.Fprintf(c.env.Stdout, "ok  %s\n", printable(check))
			}
			word := "joined"
			if dryRun {
				word = "could join"
			}
			fmt.Fprintf(c.env.Stdout, "%s cluster %s\n  its CA fingerprint:  %s\n  ours, as it sees it: %s\n", word, printable(res.Cluster), res.Fingerprint, res.OwnFingerprint)
			if len(res.Existing) > 0 {
				fmt.Fprintf(c.env.Stderr, "%s also knows %s: join each of them to share services with them\n", printable(res.Cluster), printable(strings.Join(res.Existing, ", ")))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check everything, store nothing")
	return c.answers(cmd)
}

func (c *cli) leaveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this cluster out of the mesh",
		Long:  "Tells every peer, deletes their bundles here, closes their connections. Traffic to\ntheir backends stops. With --force also when peers cannot be told.",
		Example: `  tombolo mesh leave
  tombolo mesh leave --force`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, done, err := c.admin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			res, err := admin.LeaveMesh(cmd.Context(), &pb.LeaveMeshRequest{Force: force})
			if err != nil {
				return rpcError(err)
			}
			if c.output == "json" {
				doc := map[string]any{"left": append([]string{}, res.Left...), "unreachable": append([]string{}, res.Unreachable...)}
				if err := c.printJSON("Leave", doc); err != nil {
					return err
				}
				return c.untold(cmd.Context(), admin, res.Unreachable, force)
			}
			for _, name := range res.Left {
				fmt.Fprintf(c.env.Stdout, "left %s\n", printable(name))
			}
			return c.untold(cmd.Context(), admin, res.Unreachable, force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "leave although a peer cannot be told")
	return c.answers(cmd)
}

// untold says what is to be done about peers that could not be told. Without
// force this cluster is still joined with them.
func (c *cli) untold(ctx context.Context, admin pb.AdminClient, names []string, force bool) error {
	if len(names) == 0 {
		return nil
	}
	own := "THIS-CLUSTER"
	if st, err := admin.Status(ctx, &pb.StatusRequest{}); err == nil && st.GetCluster().GetName() != "" {
		own = st.Cluster.Name
	}
	all := printable(strings.Join(names, ", "))
	if !force {
		return fmt.Errorf("still joined with %s\ncause: it could not be told\nfix: repair the connection ('tombolo mesh list' says what is wrong), or leave with --force and run on the other side: tombolo mesh remove %s", all, own)
	}
	if c.output == "json" {
		return nil // it is in the document
	}
	fmt.Fprintf(c.env.Stderr, "%s could not be told; run there: tombolo mesh remove %s\n", all, own)
	return nil
}

func (c *cli) removeCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove CLUSTER",
		Short: "Remove another cluster from this one's mesh",
		Long:  "Deletes its bundle, closes its connections, and every agent drops what it knows of\nit. With --force also when that cluster is dead.",
		Example: `  tombolo mesh remove gcp
  tombolo mesh remove gcp --force   # it is dead and cannot be told`,
		Args:              oneArg("CLUSTER, a name of 'tombolo mesh list'"),
		ValidArgsFunction: c.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, done, err := c.admin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			res, err := admin.RemovePeer(cmd.Context(), &pb.RemovePeerRequest{Cluster: args[0], Force: force})
			if err != nil {
				return rpcError(err)
			}
			if c.output == "json" {
				return c.printJSON("Remove", map[string]any{"cluster": args[0], "told": res.Told, "warning": res.Warning})
			}
			fmt.Fprintf(c.env.Stdout, "removed %s\n", printable(args[0]))
			if res.Warning != "" {
				fmt.Fprintln(c.env.Stderr, "warning: "+printable(res.Warning))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove although that cluster cannot be told")
	return c.answers(cmd)
}

func (c *cli) listCommand() *cobra.Command {
	return c.answers(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the clusters this one is joined with",
		Long:    "REACHABLE: this mesh API server gets through to that one. READERS: connections of\nthat cluster's agents and mesh API servers here. Whether a node follows a cluster,\nand whether traffic gets there, 'tombolo status' says on that node.",
		Example: "  tombolo mesh list\n  tombolo mesh list -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, done, err := c.admin(cmd.Context())
			if err != nil {
				return err
			}
			defer done()
			res, err := admin.ListPeers(cmd.Context(), &pb.ListPeersRequest{})
			if err != nil {
				return rpcError(err)
			}
			if c.output == "json" {
				items := []map[string]any{}
				for _, p := range res.Peers {
					items = append(items, peerJSON(p))
				}
				return c.printJSON("PeerList", map[string]any{"items": items})
			}
			if len(res.Peers) == 0 {
				fmt.Fprintln(c.env.Stderr, "this cluster has no peers; run 'tombolo mesh invite' here and 'tombolo mesh join' there")
				return nil
			}
			return c.printPeers(res.Peers)
		},
	})
}

// printPeers prints a table, and below it why those that are not in reach are not.
func (c *cli) printPeers(peers []*pb.PeerStatus) error {
	if err := table(c.env.Stdout, peerHeader, c.peerRows(peers)); err != nil {
		return err
	}
	for _, p := range peers {
		if p.Error != "" {
			fmt.Fprintf(c.env.Stdout, "  %s: %s\n", printable(p.Peer.GetName()), printable(p.Error))
		}
	}
	return nil
}

const peerHeader = "PEER ID REACHABLE READERS POD-PREFIXES CA-FINGERPRINT JOINED"

func (c *cli) peerRows(peers []*pb.PeerStatus) [][]string {
	var rows [][]string
	for _, p := range peers {
		reachable := "yes"
		if !p.Reachable {
			reachable = "NO"
			if p.LastSeen != 0 {
				reachable += ", seen " + c.ago(p.LastSeen)
			}
		}
		rows = append(rows, []string{p.Peer.GetName(), fmt.Sprint(p.Peer.GetId()), reachable, fmt.Sprint(p.Readers),
			strings.Join(prefixTexts(p.Peer.GetPodPrefixes()), ","), shortFingerprint(p.Fingerprint), c.ago(p.Peer.GetJoined())})
	}
	return rows
}

func peerJSON(p *pb.PeerStatus) map[string]any {
	return map[string]any{"name": p.Peer.GetName(), "id": p.Peer.GetId(), "reachable": p.Reachable, "error": p.Error,
		"lastSeen": timeText(p.LastSeen), "readers": p.Readers, "fingerprint": p.Fingerprint,
		"meshAddresses": append([]string{}, p.Peer.GetMeshAddresses()...), "podPrefixes": prefixTexts(p.Peer.GetPodPrefixes()), "joined": timeText(p.Peer.GetJoined())}
}

// completeClusters offers the names of peers.
func (c *cli) completeClusters(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	admin, done, err := c.admin(cmd.Context())
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer done()
	res, err := admin.ListPeers(cmd.Context(), &pb.ListPeersRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range res.Peers {
		names = appendPlain(names, p.Peer.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
