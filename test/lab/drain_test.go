package lab

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

const sticky4 = "172.20.0.11"

// stickyObject is checkout under another address, for clients that stay with a backend.
func stickyObject() string {
	o := ServiceObject(ServiceSpec{Name: "sticky", App: "checkout", ClusterIPs: []string{sticky4},
		Port: 80, TargetPort: checkoutPort, Annotations: map[string]string{"tombolo.io/global": "true"}})
	o["spec"].(Object)["sessionAffinity"] = "ClientIP"
	return Manifest(o)
}

// drain is what an operator of c asks for.
func (r *rig) drain(c *Cluster, req *pb.DrainRequest) *pb.DrainStatus {
	r.t.Helper()
	res, err := must(c.Admin())(r.t).Drain(r.ctx, req)
	noError(r.t, err)
	return res.Drain
}

// clientOf keeps asking from pods of the first cluster until one is served by a
// cluster, which it then stays with.
func (r *rig) clientOf(cluster string, pods []*Pod, o ClientOptions) *Client {
	r.t.Helper()
	for i := range 40 {
		c := must(pods[i%len(pods)].Client(fmt.Sprintf("stays-%s-%d", strings.ReplaceAll(o.Target, ":", "-"), i), o))(r.t)
		first, err := c.AwaitMore(r.ctx, time.Time{}, 1)
		noError(r.t, err)
		if first[0].Cluster() == cluster {
			return c
		}
		c.Process.Kill()
	}
	r.t.Fatalf("nobody was served by %s", cluster)
	return nil
}

// shareOf is the part of requests that began in a span and that a cluster answered.
// One that failed fails the test.
func (r *rig) shareOf(cluster string, c *Client, from, to time.Time) float64 {
	r.t.Helper()
	there, all := 0, 0
	for _, res := range c.Since(from) {
		if res.Begin().Before(from) || !res.Begin().Before(to) {
			continue
		}
		if !res.OK() {
			r.t.Errorf("%v after the start: %s", res.Begin().Sub(from), res.Err)
		}
		all++
		if res.Cluster() == cluster {
			there++
		}
	}
	if all < 20 {
		r.t.Fatalf("%d requests from %v to %v are too few to judge by", all, from, to)
	}
	return float64(there) / float64(all)
}

func (r *rig) until(t time.Time) {
	r.t.Helper()
	select {
	case <-time.After(time.Until(t)):
	case <-r.ctx.Done():
		r.t.Fatal(r.ctx.Err())
	}
}

// gcp is drained over 12 s, with agents and the mesh API server killed amid it: new
// connections leave it bit by bit, one that exists stays, and a client with session
// affinity stays until the end. It returns, drains itself, and is the last resort.
func TestDrain(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{})
	for _, c := range r.Clusters() {
		noError(t, c.Apply("service-sticky", stickyObject()))
	}
	pods := []*Pod{r.client}
	for i := range 5 {
		pods = append(pods, must(r.a.Nodes[0].AddPod(r.ctx, PodSpec{Name: fmt.Sprintf("client-%d", i)}))(t))
	}
	r.awaitPath(r.client, ClientOptions{Target: sticky4 + ":80", Network: "tcp"})
	keep := ClientOptions{Target: checkout4 + ":80", Network: "tcp", Interval: 50 * time.Millisecond, Keep: true}
	established := r.clientOf("gcp", pods, keep)
	affine := r.clientOf("gcp", pods, ClientOptions{Target: sticky4 + ":80", Network: "tcp", Interval: 50 * time.Millisecond})
	stream := must(r.client.Client("stream", ClientOptions{Target: checkout4 + ":80", Network: "tcp", Interval: 5 * time.Millisecond}))(t)
	if _, err := stream.AwaitMore(r.ctx, time.Time{}, 200); err != nil {
		t.Fatal(err)
	}

	const over = 12 * time.Second
	start := time.Unix(0, r.drain(r.a, &pb.DrainRequest{Cluster: "gcp", Over: int64(over)}).Drain.Start)
	if before := r.shareOf("gcp", stream, time.Time{}, start); before < 0.3 {
		t.Errorf("before: gcp has %.2f", before)
	}
	r.until(start.Add(4 * time.Second))
	r.a.Nodes[0].agent.Kill()
	noError(t, r.a.Nodes[0].StartAgent(r.ctx))
	r.a.KillControlPlane()
	r.until(start.Add(7 * time.Second))
	noError(t, r.a.StartControlPlane(r.ctx))
	r.until(start.Add(over + 4*time.Second))

	begin, end := r.shareOf("gcp", stream, start, start.Add(2*time.Second)), r.shareOf("gcp", stream, start.Add(over-4*time.Second), start.Add(over-time.Second))
	after := r.shareOf("gcp", stream, start.Add(over+2*time.Second), start.Add(over+4*time.Second))
	t.Logf("gcp had %.2f at first, %.2f near the end, %.2f afterwards", begin, end, after)
	if begin < 0.3 || end > begin*0.75 || end == 0 || after != 0 {
		t.Error("its share does not fall as it should")
	}
	if stays := r.shareOf("gcp", affine, start, start.Add(over-time.Second)); stays != 1 {
		t.Errorf("the affine client left before the end: %.2f stayed", stays)
	}
	if left := r.shareOf("gcp", affine, start.Add(over+2*time.Second), start.Add(over+4*time.Second)); left != 0 {
		t.Errorf("the affine client did not leave: %.2f stayed", left)
	}
	status := r.agentStatus(r.a.Nodes[0])
	if len(status.Drains) != 1 || status.Drains[0].Left != 0 || status.Drains[0].ByItself {
		t.Errorf("status: %+v", status.Drains)
	}

	r.eventually(20*time.Second, "the agent follows the mesh API server that was started anew", func() error {
		if c := r.clusterStatus(r.a.Nodes[0], "aws"); !c.Connected {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	r.drain(r.a, &pb.DrainRequest{Cluster: "gcp", Over: int64(2 * time.Second), Back: true})
	r.eventually(20*time.Second, "gcp has its share again", func() error {
		from := time.Now()
		r.until(from.Add(700 * time.Millisecond))
		if share := r.shareOf("gcp", stream, from, from.Add(600*time.Millisecond)); share < 0.3 {
			return fmt.Errorf("it has %.2f; %+v", share, r.agentStatus(r.a.Nodes[0]).Drains)
		}
		return nil
	})
	r.drainedByItself(stream)
	for _, res := range established.Since(time.Time{}) {
		if res.Cluster() != "gcp" {
			t.Fatalf("an established connection: %+v", res)
		}
	}
}

// gcp drains itself, and aws obeys; when aws has nothing left, gcp serves.
func (r *rig) drainedByItself(stream *Client) {
	r.t.Helper()
	r.drain(r.b, &pb.DrainRequest{Cluster: "gcp"})
	r.eventually(10*time.Second, "aws obeys", func() error {
		for _, d := range r.agentStatus(r.a.Nodes[0]).Drains {
			if d.Cluster == "gcp" && d.ByItself && d.Left == 0 {
				return nil
			}
		}
		return errors.New("it does not say that gcp drains itself")
	})
	now := time.Now().Add(time.Second)
	r.until(now.Add(time.Second))
	if share := r.shareOf("gcp", stream, now, now.Add(time.Second)); share != 0 {
		r.t.Errorf("it drains itself: gcp has %.2f", share)
	}
	for _, p := range r.servers[r.a] {
		noError(r.t, p.Retire())
	}
	now = time.Now()
	if _, err := stream.Await(r.ctx, "an answer from gcp, the last resort", now, func(res Result) bool { return res.Cluster() == "gcp" }); err != nil {
		r.t.Error(err)
	}
	// What retires serves on for a moment; then all is gcp's, and nothing fails.
	r.eventually(10*time.Second, "gcp has all", func() error {
		from := time.Now()
		r.until(from.Add(300 * time.Millisecond))
		if share := r.shareOf("gcp", stream, from, from.Add(300*time.Millisecond)); share != 1 {
			return fmt.Errorf("it has %.2f", share)
		}
		return nil
	})
}
