package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

const (
	home, away  = "aws", "gcp" // the clients' cluster, and the one they are sent to
	serviceIP   = "172.20.0.10"
	servePort   = 8080
	maxServices = 20_000
	// mark is in every request, so that one in clear would be seen on the underlay.
	mark = "in-clear-5f27"
)

// mesh is two clusters with a service in both, and clients of it in one.
type mesh struct {
	*lab.Lab
	home, away *lab.Cluster
	client     *lab.Pod // on the first node of home
	capture    *lab.Capture
	servers    map[*lab.Cluster][]*lab.Pod
}

type meshOptions struct {
	nodes    int    // of each cluster
	services int    // global ones, that of the clients among them
	affinity string // of the clients' service: remote sends them to away
}

// newMesh starts a mesh; close it.
func (s *suite) newMesh(ctx context.Context, o meshOptions) (m *mesh, err error) {
	l, err := lab.New(ctx, lab.Options{BinDir: s.binDir})
	if err != nil {
		return nil, err
	}
	m = &mesh{Lab: l, servers: map[*lab.Cluster][]*lab.Pod{}}
	begin := time.Now()
	if err := m.start(ctx, o); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s.say("%d clusters of %d nodes, %d global services: ready after %s", 2, o.nodes, o.services, seconds(time.Since(begin)))
	return m, nil
}

func (m *mesh) start(ctx context.Context, o meshOptions) (err error) {
	if m.home, err = m.AddCluster(home, o.nodes); err != nil {
		return err
	}
	if m.away, err = m.AddCluster(away, o.nodes); err != nil {
		return err
	}
	if m.capture, err = m.Capture(mark); err != nil {
		return err
	}
	started := make(chan error, 2)
	for _, c := range m.Clusters() {
		go func() { started <- c.Start(ctx) }()
	}
	if err := errors.Join(<-started, <-started); err != nil {
		return err
	}
	if _, _, err := m.away.Join(ctx, m.home); err != nil {
		return err
	}
	for _, c := range m.Clusters() {
		if err := m.fill(ctx, c, o); err != nil {
			return err
		}
	}
	if m.client, err = m.home.Nodes[0].AddPod(ctx, lab.PodSpec{Name: "client"}); err != nil {
		return err
	}
	return m.settled(ctx, o.services)
}

// fill gives a cluster its services, and a backend of all of them on each node.
func (m *mesh) fill(ctx context.Context, c *lab.Cluster, o meshOptions) error {
	for i, n := range c.Nodes {
		name := fmt.Sprintf("checkout-%d", i+1)
		p, err := n.AddPod(ctx, lab.PodSpec{Name: name, Labels: map[string]string{"app": "checkout"}, Port: servePort,
			Argv: lab.ServeArgv(c.Name+"/"+name, servePort)})
		if err != nil {
			return err
		}
		m.servers[c] = append(m.servers[c], p)
	}
	annotations := map[string]string{"tombolo.io/global": "true"}
	if c.Name == home {
		annotations["tombolo.io/affinity"] = o.affinity
	}
	objects := []lab.Object{service("checkout", serviceIP, annotations)}
	for i := 1; i < o.services; i++ {
		objects = append(objects, service(fmt.Sprintf("more-%d", i), fmt.Sprintf("172.21.%d.%d", i>>8, i&255), annotations))
	}
	return c.Apply("services", lab.Manifest(objects...))
}

func service(name, ip string, annotations map[string]string) lab.Object {
	return lab.ServiceObject(lab.ServiceSpec{Name: name, App: "checkout", ClusterIPs: []string{ip}, Port: 80, TargetPort: servePort, Annotations: annotations})
}

// settled waits until every agent has every cluster's records and has written all
// its rows, and a client is answered.
func (m *mesh) settled(ctx context.Context, services int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("not within 3 minutes"))
	defer cancel()
	for _, c := range m.Clusters() {
		for _, n := range c.Nodes {
			if err := poll(ctx, c.Name+"/"+n.Name+" is settled", func() error { return m.nodeSettled(ctx, n, services) }); err != nil {
				return err
			}
		}
	}
	return m.answered(ctx)
}

func (m *mesh) nodeSettled(ctx context.Context, n *lab.Node, services int) error {
	var st agent.Status
	if err := n.GetJSON(ctx, "/v1/status", &st); err != nil {
		return err
	}
	for _, c := range st.Clusters {
		if !c.Synced || len(c.NodesDown) > 0 {
			return fmt.Errorf("cluster %s: synced %v, down %v", c.Name, c.Synced, c.NodesDown)
		}
	}
	for _, t := range st.Tables {
		backends := 0
		for _, pods := range m.servers {
			backends += len(pods)
		}
		if t.Pending > 0 || t.Name == agent.TableSlots && t.Wanted < services*backends {
			return fmt.Errorf("table %s: %d rows, %d to be written", t.Name, t.Wanted, t.Pending)
		}
	}
	if len(st.Clusters) != len(m.Clusters()) {
		return fmt.Errorf("it knows %d clusters", len(st.Clusters))
	}
	return nil
}

// nodeAtRest waits until a node's agent is synced with all clusters and has written
// all its rows.
func (m *mesh) nodeAtRest(ctx context.Context, n *lab.Node) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not within a minute"))
	defer cancel()
	return poll(ctx, n.Name+" is at rest", func() error { return m.nodeSettled(ctx, n, 1) })
}

// answered waits until 50 requests in a row were answered.
func (m *mesh) answered(ctx context.Context) error {
	return poll(ctx, "the service answers", func() error {
		c, err := m.client.Client("try", lab.ClientOptions{Target: target, Interval: 2 * time.Millisecond})
		if err != nil {
			return err
		}
		defer c.Process.Kill()
		results, err := c.AwaitMore(ctx, time.Time{}, 50)
		if err == nil && lab.Failed(results) > 0 {
			err = fmt.Errorf("%d of 50 requests failed", lab.Failed(results))
		}
		return err
	})
}

var target = net.JoinHostPort(serviceIP, "80")

// clear counts the packets that held a request in clear on their way between the
// clusters, or went to a pod past the tunnels.
func (m *mesh) clear() (n int64, detail string) {
	packets, marked, missed := m.capture.Count()
	return marked, fmt.Sprintf("%d of %d packets%s", marked, packets, map[bool]string{true: fmt.Sprintf(" (%d more were not looked at)", missed)}[missed > 0])
}

// done closes the mesh, after what its capture saw is in the table.
func (s *suite) done(m *mesh, err *error) {
	n, detail := m.clear()
	if *err == nil {
		s.never("nothing between clusters in clear", int(n), detail)
	}
	*err = errors.Join(*err, m.Close())
}

// poll asks again until cond is nil or ctx ends.
func poll(ctx context.Context, what string, cond func() error) error {
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; last: %v", what, context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// verdicts counts the rows of health that a node's agent wrote since it started:
// every verdict, however short it lived.
func verdicts(ctx context.Context, n *lab.Node) (written uint64, down []string, err error) {
	var st agent.Status
	if err := n.GetJSON(ctx, "/v1/status", &st); err != nil {
		return 0, nil, err
	}
	for _, t := range st.Tables {
		if strings.HasSuffix(t.Name, "_health") {
			written += t.Written
		}
	}
	for _, d := range st.Health.Down {
		down = append(down, d.Cluster+"/"+d.Node)
	}
	return written, down, nil
}
