package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

var speedCases = []Case{
	{Name: "new-pod", Claim: "a new pod is reachable and policed within 1 s of its address appearing, from its own and from the other cluster", Needs: []Need{NeedsTwoNodes}, Run: newPod},
	{Name: "slice-to-maps", Claim: "a service change in one cluster is in force in the other within 500 ms of the EndpointSlice write", Needs: []Need{NeedsLab}, Run: sliceToMaps},
}

// median and worst of what was measured.
func spread(d []time.Duration) string {
	d = slices.Sorted(slices.Values(d))
	return fmt.Sprintf("median %d ms, worst %d ms of %d", d[len(d)/2].Milliseconds(), d[len(d)-1].Milliseconds(), len(d))
}

const newPodRuns = 5

func newPod(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	for _, c := range t.Clusters {
		c.Apply(t, ns, onlyFrom, "{podSelector: {matchLabels: {role: friend}}}, {podSelector: {matchLabels: {role: friend, tombolo.io/cluster: "+b.Name+"}}}")
	}
	friends := []*Pod{a.Pod(t, ns, "friend", On(a.Nodes[0]), Label("role", "friend")), b.Pod(t, ns, "friend", On(b.Nodes[0]), Label("role", "friend"))}
	stranger := a.Pod(t, ns, "stranger", On(a.Nodes[0]), Label("role", "stranger"))
	took := make([][]time.Duration, len(friends))
	for i := range newPodRuns {
		var watchers []*Watcher
		for _, f := range friends {
			watchers = append(watchers, f.Watcher(t))
		}
		shut := stranger.Watcher(t)
		ip, at := a.addressAppears(t, ns, fmt.Sprintf("new-%d", i))
		for _, w := range append(watchers, shut) {
			w.Target(hostPort(ip, 9000))
		}
		for j, w := range watchers {
			took[j] = append(took[j], w.First(t, "yes", 10*time.Second).Sub(at))
		}
		t.During(time.Second, "the stranger stays out", func() error { shut.Never(t, "yes"); return nil })
		for _, w := range append(watchers, shut) {
			w.Stop()
		}
	}
	for j, f := range friends {
		t.Note("reached from %s: %s", f.cluster.Name, spread(took[j]))
		if worst := slices.Max(took[j]); worst > time.Second {
			t.Fatalf("reached from %s only %v after its address appeared", f.cluster.Name, worst)
		}
	}
	t.Note("who may not was never let in")
}

// addressAppears makes a server on the second node and returns its first address, as
// soon as the API server says it.
func (c *Cluster) addressAppears(t *T, ns, name string) (ip string, at time.Time) {
	w, err := c.Client.CoreV1().Pods(ns).Watch(t.ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	t.OK(err, "watch")
	defer w.Stop()
	c.StartPod(t, ns, name, On(c.Nodes[1]), Args("serve"), Label("app", "web"))
	for limit := time.After(time.Minute); ; {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("the watch of pod %s ended", name)
			}
			if p, ok := e.Object.(*corev1.Pod); ok && p.Status.PodIP != "" {
				return p.Status.PodIP, time.Now()
			}
		case <-limit:
			t.Fatalf("pod %s got no address", name)
		}
	}
}

const sliceRuns = 10

// sliceWay is where the time of one change went.
type sliceWay struct {
	write   time.Duration // the API server's own answer to the write
	told    time.Duration // from before the write until a watch of the API server said it
	kernel  time.Duration // from the mesh API server's hearing of it to the other cluster's kernel
	reached time.Duration // from before the write until a connection succeeded
}

// sliceToMaps writes slices by hand, of a service without a selector: nothing but
// Tombolo is between the write and the other cluster.
func sliceToMaps(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	server := a.Deploy(t, ns, "server", 1)[0]
	client := b.Pod(t, ns, "client", On(b.Nodes[0]))
	var ways []sliceWay
	for i := range sliceRuns {
		way := t.sliceWay(ns, fmt.Sprintf("by-hand-%d", i), server, client)
		t.Logf("write %v, told %v, kernel %v, reached %v", way.write, way.told, way.kernel, way.reached)
		ways = append(ways, way)
	}
	column := func(of func(sliceWay) time.Duration) []time.Duration {
		var d []time.Duration
		for _, way := range ways {
			d = append(d, of(way))
		}
		return d
	}
	took := column(func(w sliceWay) time.Duration { return w.reached })
	t.Note("from before the write until a new connection from %s succeeds (tried every 10 ms): %s", b.Name, spread(took))
	t.Note("of that the API server's own answer to the write: %s", spread(column(func(w sliceWay) time.Duration { return w.write })))
	t.Note("from before the write until a watch of the API server tells of it: %s", spread(column(func(w sliceWay) time.Duration { return w.told })))
	t.Note("from %s's hearing of it to %s's kernel: %s", a.Name, b.Nodes[0].Name, spread(column(func(w sliceWay) time.Duration { return w.kernel })))
	if worst := slices.Max(took); worst > 500*time.Millisecond {
		t.Fatalf("the slowest took %v", worst)
	}
}

func (t *T) sliceWay(ns, name string, server, client *Pod) (way sliceWay) {
	a, b := t.Clusters[0], t.Clusters[1]
	noSelector := func(s *corev1.Service) { s.Spec.Selector = nil }
	a.Service(t, ns, name, Global(), noSelector)
	svc := b.Service(t, ns, name, Global(), noSelector)
	watcher := client.Watcher(t)
	defer watcher.Stop()
	watcher.Target(hostPort(svc.Spec.ClusterIP, 9000))
	watcher.First(t, "refused", 10*time.Second) // the service is there, and nobody behind it
	// Both clusters' records of the two services are on their way still: what is
	// measured begins when they have arrived.
	before := t.quiet(b.Nodes[0])
	told := a.sliceAppears(t, ns, name)
	begin := time.Now()
	a.writeSlice(t, ns, name, server.Status.PodIP)
	way.write = time.Since(begin)
	way.reached = watcher.First(t, "yes", 10*time.Second).Sub(begin)
	select {
	case at := <-told:
		way.told = at.Sub(begin)
	case <-time.After(10 * time.Second):
		t.Fatalf("a watch of EndpointSlices has not told of %s", name)
	}
	after := t.quiet(b.Nodes[0])
	if after.count == before.count {
		t.Fatalf("the agent on %s measured no change", b.Nodes[0].Name)
	}
	way.kernel = time.Duration((after.sum - before.sum) / (after.count - before.count) * float64(time.Second))
	return way
}

// quiet waits until the agent has had nothing to do for a moment.
func (t *T) quiet(node Node) histogram {
	var last histogram
	t.Within(10*time.Second, "the agent on "+node.Name+" has nothing to do", func() error {
		now, err := t.originToKernel(node)
		if err == nil && now != last {
			err = errors.New("it has")
		}
		last = now
		return err
	})
	return last
}

// sliceAppears sends the time when a watch tells of a slice.
func (c *Cluster) sliceAppears(t *T, ns, name string) <-chan time.Time {
	w, err := c.Client.DiscoveryV1().EndpointSlices(ns).Watch(t.ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	t.OK(err, "watch")
	told := make(chan time.Time, 1)
	go func() {
		defer w.Stop()
		if e, ok := <-w.ResultChan(); ok && e.Type == watch.Added {
			told <- time.Now()
		}
	}()
	return told
}

func (c *Cluster) writeSlice(t *T, ns, service, ip string) {
	c.Apply(t, ns, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s, labels: {kubernetes.io/service-name: %[1]s, endpointslice.kubernetes.io/managed-by: tombolo-test}}
addressType: IPv4
endpoints: [{addresses: [%[2]s], conditions: {ready: true}}]
ports: [{name: tcp, port: 9000, protocol: TCP}]
`, service, ip)
}

// histogram is a metric's total and number of observations.
type histogram struct{ sum, count float64 }

// originToKernel is what a node's agent has measured of the way from a mesh API
// server's record to its own kernel.
func (t *T) originToKernel(node Node) (h histogram, err error) {
	const metric = "tombolo_agent_origin_to_kernel_seconds"
	out, err := t.Lab.Run(t.ctx, node.Name, t.Lab.echo(), "get", "http://127.0.0.1:9971/metrics")
	if err != nil {
		return h, fmt.Errorf("%w: %s", err, out)
	}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch name {
		case metric + "_sum":
			h.sum, err = strconv.ParseFloat(value, 64)
		case metric + "_count":
			h.count, err = strconv.ParseFloat(value, 64)
		}
		if err != nil {
			return h, err
		}
	}
	if h.count == 0 {
		return h, errors.New("the agent does not measure " + metric)
	}
	return h, nil
}
