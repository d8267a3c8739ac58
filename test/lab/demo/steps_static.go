package demo

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

// controlPlanesDead kills every mesh API server and etcd.
func (d *demo) controlPlanesDead(ctx context.Context) error {
	d.title("Every mesh API server and etcd is killed", "Control planes may all be dead: what is known keeps working, for old connections and for new ones.")
	old, err := d.clientPod.Client("client-old", lab.ClientOptions{Target: net.JoinHostPort(serviceIP, "80"), Mark: mark,
		Interval: 5 * time.Millisecond, Keep: true})
	if err != nil {
		return err
	}
	defer old.Process.Kill()
	first, err := old.Await(ctx, "the long-lived connection", time.Time{}, lab.Result.OK)
	if err != nil {
		return err
	}
	for _, c := range d.lab.Clusters() {
		c.KillControlPlane()
	}
	begin := time.Now()
	fresh, err := d.client.AwaitMore(ctx, begin, 500)
	if err != nil {
		return err
	}
	kept := old.Since(begin)
	d.assert("control planes dead: new connections go on", lab.Failed(fresh) == 0 && lab.Shares(fresh)[d.home.Name] == 0,
		"%d new connections to other clusters in %.1f s, %d failed", len(fresh), time.Since(begin).Seconds(), lab.Failed(fresh))
	d.assert("control planes dead: old connections go on", len(kept) > 0 && lab.Failed(kept) == 0 && allBy(kept, first.Who),
		"%d requests on one connection to %s, %d failed", len(kept), first.Who, lab.Failed(kept))
	restart := time.Now()
	for _, c := range d.lab.Clusters() {
		if err := c.StartControlPlane(ctx); err != nil {
			return err
		}
	}
	d.event("control planes are back after %.1f s", time.Since(restart).Seconds())
	return nil
}

func allBy(results []lab.Result, who string) bool {
	return !slices.ContainsFunc(results, func(r lab.Result) bool { return r.Who != who })
}

// agentsRestart kills and restarts every agent under load.
func (d *demo) agentsRestart(ctx context.Context) error {
	d.title("Every agent is killed and restarted under load", "A restart is a no-op: programs and maps stay in the kernel, a fresh agent reads them and writes the difference.")
	begin := time.Now()
	count := 0
	for _, c := range d.lab.Clusters() {
		for _, n := range c.Nodes {
			n.Agent().Kill()
			count++
		}
	}
	d.event("%d agents killed", count)
	if _, err := d.client.AwaitMore(ctx, time.Now(), 100); err != nil {
		return err
	}
	for _, c := range d.lab.Clusters() {
		for _, n := range c.Nodes {
			if err := n.StartAgent(ctx); err != nil {
				return err
			}
		}
	}
	if _, err := d.client.AwaitMore(ctx, time.Now(), 100); err != nil {
		return err
	}
	results := d.client.Since(begin)
	for _, r := range results {
		if !r.OK() || r.Cluster() == d.home.Name {
			d.event("%.0f ms after the kill, %s: %s%s", ms(r.End.Sub(begin)), r.End.UTC().Format("15:04:05.000"), r.Who, r.Err)
		}
	}
	d.assert("agents restart under cross-cluster load: no failed request", lab.Failed(results) == 0 && lab.Shares(results)[d.home.Name] == 0,
		"%d agents, %d requests in %.1f s: %s, %d failed", count, len(results), time.Since(begin).Seconds(), shareText(lab.Shares(results)), lab.Failed(results))
	return nil
}

// tunnelDead kills the tunnel process of the client's node.
func (d *demo) tunnelDead(ctx context.Context) error {
	d.title(fmt.Sprintf("The tunnel process of %s/%s is killed", d.home.Name, d.home.Nodes[0].Name),
		"Losing the device loses connectivity, never secrecy: a blackhole route outlives the tunnel's.")
	target := net.JoinHostPort(d.servers[d.away.Name][0].Addresses[0].String(), fmt.Sprint(servePort))
	direct, err := d.clientPod.Client("client-direct", lab.ClientOptions{Target: target, Mark: mark, Interval: 20 * time.Millisecond, Timeout: 200 * time.Millisecond})
	if err != nil {
		return err
	}
	defer direct.Process.Kill()
	if _, err := direct.Await(ctx, "a pod of the other cluster, by its address", time.Time{}, lab.Result.OK); err != nil {
		return err
	}
	_, markedBefore, _ := d.capture.Count()
	d.home.Nodes[0].Tunnel().Kill()
	begin := time.Now()
	results, err := direct.AwaitMore(ctx, begin.Add(100*time.Millisecond), 20)
	if err != nil {
		return err
	}
	_, markedAfter, _ := d.capture.Count()
	d.assert("tunnel dead: connectivity stops, nothing leaks", lab.Failed(results) == len(results) && markedAfter == markedBefore,
		"%d of %d requests to %s failed (%s); %d packets in clear", lab.Failed(results), len(results), target, results[len(results)-1].Err, markedAfter-markedBefore)
	restart := time.Now()
	if err := d.home.Nodes[0].StartTunnel(); err != nil {
		return err
	}
	back, err := direct.Await(ctx, "the tunnel is back", restart, lab.Result.OK)
	if err != nil {
		return err
	}
	d.assert("tunnel restarted: connectivity returns by itself", true, "after %.2f s", back.End.Sub(restart).Seconds())
	return nil
}

// nothingInClear reads the capture that ran all the time.
func (d *demo) nothingInClear(ctx context.Context) error {
	d.title("What the underlay saw", "A capture ran on every link between the clusters during all of this.")
	packets, marked, missed := d.capture.Count()
	d.event("within %s, where direct routes carry packets as they are, the capture saw the marker %d times: it would see it", d.home.Name, d.capture.Inside())
	d.assert("the client's words never cross in clear", packets > 1000 && marked == 0 && missed == 0,
		"%d packets captured, %d missed, %d with the marker in clear between clusters", packets, missed, marked)
	return nil
}

func shareText(shares map[string]int) string {
	var names []string
	for name := range shares {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %d", name, shares[name])
	}
	return b.String()
}
