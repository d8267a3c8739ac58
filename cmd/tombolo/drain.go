package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

func (c *cli) drainCommand() *cobra.Command {
	return c.drainOrBack(&cobra.Command{
		Use:   "drain CLUSTER",
		Short: "Move new connections away from a cluster",
		Long: `New connections to global services leave CLUSTER step by step, until --over has gone
by: its weight falls to nothing, and what it had goes to other clusters. Connections
that exist stay. Clients with session affinity stay with its backends until the end.
After that it gets connections only where no other cluster has a backend that is up.

The name of this cluster itself: all clusters of the mesh, this one too, stop sending
to it. That is for its maintenance. The name of a peer: this cluster's clients stop,
those of other clusters go on.

The drain lasts until 'undrain', whatever restarts meanwhile. 'tombolo status' and
'tombolo mesh status' show it. Another drain of the same with another --over makes it
faster or slower. Services that are not global are not touched.`,
		Example: `  tombolo mesh drain gcp
  tombolo mesh drain gcp --over 30s
  tombolo mesh drain gcp --service shop/checkout
  tombolo mesh drain aws --context aws   # before maintenance of aws: peers obey, too`,
	}, false, 5*time.Minute, "how long it takes; 0s = at once")
}

func (c *cli) undrainCommand() *cobra.Command {
	return c.drainOrBack(&cobra.Command{
		Use:   "undrain CLUSTER",
		Short: "Bring new connections back to a drained cluster",
		Long: `The weight of CLUSTER rises again, from what is left of it to all of it, until --over
has gone by. What drained it must bring it back: a peer that drained itself is undrained
there, and a drained service by the same --service.`,
		Example: `  tombolo mesh undrain gcp
  tombolo mesh undrain gcp --over 0s
  tombolo mesh undrain gcp --service shop/checkout`,
	}, true, 30*time.Second, "how long it takes; 0s = at once")
}

func (c *cli) drainOrBack(cmd *cobra.Command, back bool, over time.Duration, overText string) *cobra.Command {
	var service string
	cmd.Args = oneArg("CLUSTER, a name of 'tombolo mesh list' or this cluster's own")
	cmd.ValidArgsFunction = c.completeClusters
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		admin, done, err := c.admin(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		res, err := admin.Drain(cmd.Context(), &pb.DrainRequest{Cluster: args[0], Service: service, Over: int64(over), Back: back, By: c.operator()})
		if err != nil {
			return rpcError(err)
		}
		if c.output == "json" {
			doc := drainJSON(res.Drain)
			doc["warning"] = res.Warning
			return c.printJSON("Drain", doc)
		}
		fmt.Fprintf(c.env.Stdout, "%s: %s\n", printable(drainObject(res.Drain)), printable(drainText(res.Drain, c.env.Now())))
		if res.Warning != "" {
			fmt.Fprintln(c.env.Stderr, "warning: "+printable(res.Warning))
		}
		return nil
	}
	cmd.Flags().StringVar(&service, "service", "", "this service alone: NAMESPACE/NAME (default all)")
	cmd.Flags().DurationVar(&over, "over", over, overText)
	return c.answers(cmd)
}

// operator is who asks, for those who wonder later.
func (c *cli) operator() string {
	for _, name := range []string{"SUDO_USER", "USER"} {
		if user := c.env.Getenv(name); user != "" {
			if host, err := os.Hostname(); err == nil {
				return user + "@" + host
			}
			return user
		}
	}
	return ""
}

func drainObject(d *pb.DrainStatus) string {
	if d.GetService() != "" {
		return "service " + d.Service + " in " + d.Cluster
	}
	return "cluster " + d.GetCluster()
}

// drainText says how far a drain is, as the agents' status does.
func drainText(d *pb.DrainStatus, now time.Time) string {
	if d.GetDrain().GetBack() && d.Left == clustermesh.ShareAll {
		return "not drained any more"
	}
	return drainOf(d).Text(now)
}

func drainOf(d *pb.DrainStatus) agent.DrainStatus {
	start := time.Unix(0, d.GetDrain().GetStart())
	return agent.DrainStatus{Cluster: d.GetCluster(), Service: d.GetService(), ByItself: d.GetByItself(), Back: d.GetDrain().GetBack(),
		Left: float64(d.GetLeft()) * 100 / clustermesh.ShareAll, Since: start.UTC(), Done: start.Add(time.Duration(d.GetDrain().GetOver())).UTC(), By: d.GetDrain().GetBy()}
}

func drainJSON(d *pb.DrainStatus) map[string]any {
	s := drainOf(d)
	return map[string]any{"cluster": s.Cluster, "service": s.Service, "byItself": s.ByItself, "back": s.Back, "leftPercent": s.Left,
		"since": s.Since.Format(time.RFC3339), "done": s.Done.Format(time.RFC3339), "by": s.By}
}

func drainsJSON(list []*pb.DrainStatus) []map[string]any {
	out := []map[string]any{}
	for _, d := range list {
		out = append(out, drainJSON(d))
	}
	return out
}

// printDrains is a line for each of them.
func (c *cli) printDrains(list []agent.DrainStatus) {
	for _, d := range list {
		object := "cluster " + d.Cluster
		if d.Service != "" {
			object = "service " + d.Service + " in " + d.Cluster
		}
		fmt.Fprintf(c.env.Stdout, "  %-12s %s: %s\n", "drain", printable(object), printable(d.Text(c.env.Now())))
	}
}
