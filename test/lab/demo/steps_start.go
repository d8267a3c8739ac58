package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

const (
	serviceIP  = "172.20.0.10"
	serviceIP6 = "fd00:172:20::10"
	servePort  = 8080
)

// start brings all clusters up at once.
func (d *demo) start(ctx context.Context) (err error) {
	d.title(fmt.Sprintf("Start: %d clusters of %d nodes", d.opts.Clusters, d.opts.Nodes),
		"Real processes in network namespaces: a mesh API server with its own etcd, agents with BPF programs, WireGuard tunnels.")
	begin := time.Now()
	d.lab, err = lab.New(ctx, lab.Options{BinDir: d.opts.BinDir, Keep: d.opts.Keep})
	if err != nil {
		return err
	}
	for i := range d.opts.Clusters {
		name := fmt.Sprintf("cloud%d", i+1)
		if i < len(cloudNames) {
			name = cloudNames[i]
		}
		if _, err := d.lab.AddCluster(name, d.opts.Nodes); err != nil {
			return err
		}
	}
	d.home, d.away = d.lab.Clusters()[0], d.lab.Clusters()[1]
	if d.capture, err = d.lab.Capture(mark); err != nil {
		return err
	}
	errs := make(chan error, d.opts.Clusters)
	for _, c := range d.lab.Clusters() {
		go func() {
			err := c.Start(ctx)
			if err == nil {
				d.event("%s is up: mesh API server at %s, %d agents", c.Name, c.MeshAddress(), len(c.Nodes))
			}
			errs <- err
		}()
	}
	for range d.lab.Clusters() {
		if e := <-errs; e != nil {
			err = e
		}
	}
	if err != nil {
		return err
	}
	took := time.Since(begin)
	d.assert("ready to serve within 10 s", took < 10*time.Second, "%.1f s", took.Seconds())
	return nil
}

// join makes one mesh of all clusters: invite on one side, join on the other.
func (d *demo) join(ctx context.Context) error {
	d.title("Join: invite on one side, join on the other",
		"One command a side. Each cluster keeps its own CA; what is exchanged are CA bundles, and each side shows the other's fingerprint.")
	clusters := d.lab.Clusters()
	begin := time.Now()
	pairs := 0
	for i, c := range clusters {
		for _, other := range clusters[:i] {
			inv, res, err := c.Join(ctx, other)
			if err != nil {
				return err
			}
			pairs++
			if i > 1 {
				continue
			}
			d.event("%s$ tombolo mesh invite        CA fingerprint of %s: %s", other.Name, other.Name, short(inv.Fingerprint))
			d.event("%s$ tombolo mesh join TOKEN    %s is known to %s as %s; %s trusts %s as %s", c.Name,
				c.Name, other.Name, short(res.OwnFingerprint), c.Name, other.Name, short(res.Fingerprint))
			d.assert("both sides show the same fingerprints", inv.Fingerprint == res.Fingerprint && res.OwnFingerprint != res.Fingerprint,
				"%s %s, %s %s", other.Name, short(inv.Fingerprint), c.Name, short(res.OwnFingerprint))
		}
	}
	d.figure("%d join(s) in %.2f s", pairs, time.Since(begin).Seconds())
	return nil
}

func short(fingerprint string) string {
	if len(fingerprint) > 23 {
		return fingerprint[:23] + "…"
	}
	return fingerprint
}

// globalService puts the same service into every cluster, with two backends each.
func (d *demo) globalService(ctx context.Context) error {
	d.title("A global service: checkout, annotated tombolo.io/global in every cluster",
		"One service everywhere: every agent learns every cluster's backends and writes them into its kernel's BPF maps.")
	begin := time.Now()
	for _, c := range d.lab.Clusters() {
		annotations := map[string]string{"tombolo.io/global": "true"}
		if c == d.home {
			annotations["tombolo.io/affinity"] = "local"
		}
		if err := d.applyService(c, annotations); err != nil {
			return err
		}
		if err := d.addServers(ctx, c); err != nil {
			return err
		}
	}
	var err error
	d.clientPod, err = d.home.Nodes[0].AddPod(ctx, lab.PodSpec{Name: "client"})
	if err != nil {
		return err
	}
	for _, c := range d.lab.Clusters() {
		for _, n := range c.Nodes {
			if err := d.awaitBackends(ctx, n, 2*d.opts.Clusters); err != nil {
				return err
			}
		}
	}
	d.figure("every agent has %d backends in its maps, %.2f s after the first manifest", 2*d.opts.Clusters, time.Since(begin).Seconds())
	return nil
}

// applyService writes checkout's Service of a cluster.
func (d *demo) applyService(c *lab.Cluster, annotations map[string]string) error {
	return c.Apply("service-checkout", lab.Manifest(lab.ServiceObject(lab.ServiceSpec{
		Name: "checkout", App: "checkout", ClusterIPs: []string{serviceIP, serviceIP6},
		Port: 80, TargetPort: servePort, Annotations: annotations,
	})))
}

// addServers adds two backends of checkout, spread over the cluster's nodes.
func (d *demo) addServers(ctx context.Context, c *lab.Cluster) error {
	for i := range 2 {
		name := fmt.Sprintf("checkout-%d", i+1)
		p, err := c.Nodes[i%len(c.Nodes)].AddPod(ctx, lab.PodSpec{
			Name: name, Labels: map[string]string{"app": "checkout"}, Port: servePort,
			Argv: lab.ServeArgv(c.Name+"/"+name, servePort),
		})
		if err != nil {
			return err
		}
		d.servers[c.Name] = append(d.servers[c.Name], p)
	}
	return nil
}

// awaitBackends waits until a node's kernel has a number of backends of
// checkout in its slots, per address family.
func (d *demo) awaitBackends(ctx context.Context, n *lab.Node, want int) error {
	last := "nothing"
	for {
		text, err := n.Get(ctx, "/v1/tables/slots")
		if err != nil {
			last = err.Error()
		} else {
			four, six := countSlots(string(text))
			if four == want && six == want {
				return nil
			}
			last = fmt.Sprintf("%d over IPv4 and %d over IPv6", four, six)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("agent of %s does not have %d backends of checkout: %w; it has %s", n.Netns(), want, context.Cause(ctx), last)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// countSlots counts a dump's backends of port 8080 by family.
func countSlots(text string) (four, six int) {
	for line := range strings.Lines(text) {
		switch {
		case strings.Contains(line, fmt.Sprintf("]:%d", servePort)):
			six++
		case strings.Contains(line, fmt.Sprintf(":%d", servePort)):
			four++
		}
	}
	return four, six
}
