package demo

import (
	"context"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

func in(cluster string) func(lab.Result) bool {
	return func(r lab.Result) bool { return r.OK() && r.Cluster() == cluster }
}

// localFirst: affinity local keeps the client at home.
func (d *demo) localFirst(ctx context.Context) (err error) {
	d.title(fmt.Sprintf("Affinity local: a client pod in %s asks http://%s", d.home.Name, net.JoinHostPort(serviceIP, "80")),
		"A new connection every 5 ms. connect() is translated to a backend by a BPF program at the socket.")
	begin := time.Now()
	d.client, err = d.clientPod.Client("client", lab.ClientOptions{Target: net.JoinHostPort(serviceIP, "80"),
		Mark: mark, Interval: 5 * time.Millisecond, Timeout: 750 * time.Millisecond})
	if err != nil {
		return err
	}
	if _, err := d.client.Await(ctx, "first answer", begin, lab.Result.OK); err != nil {
		return err
	}
	results, err := d.client.AwaitMore(ctx, time.Now(), 300)
	if err != nil {
		return err
	}
	shares := lab.Shares(results)
	d.assert("affinity local reaches local backends only", shares[d.home.Name] == len(results),
		"%d requests: %s, %d failed", len(results), shareText(shares), lab.Failed(results))
	return d.sameOverIPv6(ctx)
}

func (d *demo) sameOverIPv6(ctx context.Context) error {
	begin := time.Now()
	six, err := d.clientPod.Client("client6", lab.ClientOptions{Target: net.JoinHostPort(serviceIP6, "80"), Mark: mark, Interval: 5 * time.Millisecond})
	if err != nil {
		return err
	}
	defer six.Process.Kill()
	results, err := six.AwaitMore(ctx, begin, 50)
	if err != nil {
		return err
	}
	d.assert("the same over IPv6", lab.Failed(results) == 0 && lab.Shares(results)[d.home.Name] == len(results),
		"%d requests, %d failed", len(results), lab.Failed(results))
	return nil
}

// localGone removes every local backend.
func (d *demo) localGone(ctx context.Context) error {
	d.title(fmt.Sprintf("All backends in %s are removed", d.home.Name),
		fmt.Sprintf("The client carries on in %s, through an encrypted tunnel.", d.away.Name))
	begin := time.Now()
	for _, p := range d.servers[d.home.Name] {
		if err := p.Retire(); err != nil {
			return err
		}
	}
	first, err := d.client.Await(ctx, "an answer from another cluster", begin, in(d.away.Name))
	if err != nil {
		return err
	}
	if _, err := d.client.AwaitMore(ctx, time.Now(), 200); err != nil {
		return err
	}
	for _, p := range d.servers[d.home.Name] { // the grace period is over
		if err := p.Remove(ctx); err != nil {
			return err
		}
	}
	d.servers[d.home.Name] = nil
	results := d.client.Since(begin)
	d.figure("first answer from %s after %.0f ms", d.away.Name, ms(first.End.Sub(begin)))
	d.assert("local backends gone: the client carries on remotely", lab.Failed(results) == 0,
		"%d of %d requests failed; %.0f ms to the first remote answer", lab.Failed(results), len(results), ms(first.End.Sub(begin)))
	return nil
}

// powerLoss cuts the power of the cluster that serves the client.
func (d *demo) powerLoss(ctx context.Context) error {
	d.title(fmt.Sprintf("%s loses power", d.away.Name),
		"Links down, every process killed, its records untouched: nobody withdraws anything. The agents' own probes notice.")
	if err := d.applyService(d.home, d.remote()); err != nil {
		return err
	}
	if err := d.addServers(ctx, d.home); err != nil {
		return err
	}
	if err := d.awaitBackends(ctx, d.home.Nodes[0], 2*d.opts.Clusters); err != nil {
		return err
	}
	d.event("backends in %s are back; affinity is now remote, so the client stays with %s", d.home.Name, d.away.Name)
	if err := d.stays(ctx, d.away.Name); err != nil {
		return err
	}
	begin := time.Now()
	if err := d.away.PowerOff(); err != nil {
		return err
	}
	first, err := d.client.Await(ctx, "an answer after the power loss", begin, func(r lab.Result) bool { return r.OK() && r.Cluster() != d.away.Name })
	if err != nil {
		return err
	}
	took := first.End.Sub(begin)
	results, err := d.client.AwaitMore(ctx, first.End, 100)
	if err != nil {
		return err
	}
	failed := lab.Failed(d.client.Since(begin))
	d.assert("a cluster that loses power is left within 3 s", took < 3*time.Second && lab.Failed(results) == 0,
		"next success in %s after %.2f s; %d requests failed until then, %d of %d after", first.Cluster(), took.Seconds(), failed-lab.Failed(results), lab.Failed(results), len(results))
	return nil
}

// remote are annotations with which the client's cluster prefers the others;
// of several, the one that the demo takes apart comes first.
func (d *demo) remote() map[string]string {
	a := map[string]string{"tombolo.io/global": "true", "tombolo.io/affinity": "remote"}
	if d.opts.Clusters > 2 {
		a["tombolo.io/failover"] = d.away.Name
	}
	return a
}

// stays asserts that the next requests are all answered by one cluster.
func (d *demo) stays(ctx context.Context, cluster string) error {
	if _, err := d.client.Await(ctx, "an answer from "+cluster, time.Now(), in(cluster)); err != nil {
		return err
	}
	results, err := d.client.AwaitMore(ctx, time.Now(), 100)
	if err != nil {
		return err
	}
	d.event("%d requests: %s, %d failed", len(results), shareText(lab.Shares(results)), lab.Failed(results))
	return nil
}

// powerBack boots the dead cluster; nobody tells anybody.
func (d *demo) powerBack(ctx context.Context) error {
	d.title(fmt.Sprintf("%s boots again", d.away.Name), "It rejoins by itself: same certificates, same pod addresses, from what is on its disks.")
	begin := time.Now()
	if err := d.away.PowerOn(ctx); err != nil {
		return err
	}
	d.event("%s is up again after %.1f s", d.away.Name, time.Since(begin).Seconds())
	first, err := d.client.Await(ctx, "an answer from the cluster that came back", begin, in(d.away.Name))
	if err != nil {
		return err
	}
	results, err := d.client.AwaitMore(ctx, first.End, 200)
	if err != nil {
		return err
	}
	all := d.client.Since(begin)
	for _, r := range all {
		if !r.OK() {
			d.event("%.0f ms after power came back: %s", ms(r.End.Sub(begin)), r.Err)
		}
	}
	d.assert("a cluster that boots rejoins by itself", lab.Failed(all) == 0 && lab.Shares(results)[d.away.Name] == len(results),
		"traffic is back after %.1f s; %d of %d requests failed", first.End.Sub(begin).Seconds(), lab.Failed(all), len(all))
	return nil
}

// weights shows affinity remote and none, with weights 3:1.
func (d *demo) weights(ctx context.Context) error {
	d.title("Affinity remote, then none with weights 3:1", "Which cluster, and how much, is said by annotation and seen in the share of answers.")
	results, err := d.client.AwaitMore(ctx, time.Now(), 200)
	if err != nil {
		return err
	}
	shares := lab.Shares(results)
	d.assert("affinity remote reaches remote backends only", shares[d.home.Name] == 0 && lab.Failed(results) == 0,
		"%d requests: %s", len(results), shareText(shares))

	if err := d.applyService(d.home, map[string]string{"tombolo.io/global": "true", "tombolo.io/affinity": "none", "tombolo.io/weight": "3"}); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := d.client.Await(ctx, "an answer from home", begin, in(d.home.Name)); err != nil {
		return err
	}
	const n = 1500
	if results, err = d.client.AwaitMore(ctx, time.Now(), n); err != nil {
		return err
	}
	shares = lab.Shares(results)
	// Every other cluster has weight 1.
	want := 3 / float64(2+d.opts.Clusters)
	got := float64(shares[d.home.Name]) / float64(len(results))
	slack := 4 * math.Sqrt(want*(1-want)/float64(len(results))) // four standard deviations
	d.assert(fmt.Sprintf("weights 3:1 give shares 3:%d", d.opts.Clusters-1), math.Abs(got-want) < slack && lab.Failed(results) == 0,
		"%d requests: %s; %s %.1f %%, wanted %.1f ± %.1f %%", len(results), shareText(shares), d.home.Name, 100*got, 100*want, 100*slack)

	if err := d.applyService(d.home, d.remote()); err != nil {
		return err
	}
	return d.awaitOnly(ctx, d.away.Name)
}

// awaitOnly waits until 50 answers in a row came from one cluster.
func (d *demo) awaitOnly(ctx context.Context, cluster string) error {
	for {
		results, err := d.client.AwaitMore(ctx, time.Now(), 50)
		if err != nil {
			return fmt.Errorf("waiting for answers from %s only: %w", cluster, err)
		}
		if lab.Shares(results)[cluster] == len(results) {
			return nil
		}
	}
}

// partition cuts the clouds off each other.
func (d *demo) partition(ctx context.Context) error {
	d.title("A partition between the clouds, and its healing", "Both sides live on alone; nothing they know is thrown away; when it heals, traffic returns.")
	var heals []func() error
	begin := time.Now()
	for _, c := range d.lab.Clusters()[1:] {
		heal, err := d.lab.Partition(d.home.Name, c.Name)
		if err != nil {
			return err
		}
		heals = append(heals, heal)
	}
	first, err := d.client.Await(ctx, "an answer from home during the partition", begin, in(d.home.Name))
	if err != nil {
		return err
	}
	after, err := d.client.AwaitMore(ctx, first.End, 100)
	if err != nil {
		return err
	}
	failed := lab.Failed(d.client.Since(begin))
	d.event("at home after %.2f s, %d requests failed meanwhile, %d afterwards", first.End.Sub(begin).Seconds(), failed, lab.Failed(after))
	healed := time.Now()
	for _, heal := range heals {
		if err := heal(); err != nil {
			return err
		}
	}
	back, err := d.client.Await(ctx, "an answer from away after the healing", healed, in(d.away.Name))
	if err != nil {
		return err
	}
	later := d.client.Since(healed)
	d.assert("a partition is left within 3 s and its healing noticed", first.End.Sub(begin) < 3*time.Second && lab.Failed(after) == 0 && lab.Failed(later) == 0,
		"out after %.2f s, back %.2f s after the healing, %d requests failed when it began, %d when it healed",
		first.End.Sub(begin).Seconds(), back.End.Sub(healed).Seconds(), failed, lab.Failed(later))
	return d.awaitOnly(ctx, d.away.Name)
}

func ms(t time.Duration) float64 { return float64(t.Microseconds()) / 1000 }
