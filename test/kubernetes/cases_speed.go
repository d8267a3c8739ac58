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

// sliceToMaps writes slices by hand, of a service without a selector: nothing but
// Tombolo is between the write and the other cluster.
func sliceToMaps(t *T) {
	ns := t.Namespace()
	a, b := t.Clusters[0], t.Clusters[1]
	noSelector := func(s *corev1.Service) { s.Spec.Selector = nil }
	var took, write []time.Duration
	server := a.Deploy(t, ns, "server", 1)[0]
	client := b.Pod(t, ns, "client", On(b.Nodes[0]))
	before, err := t.originToKernel(b.Nodes[0])
	t.OK(err, "metrics of the agent on %s", b.Nodes[0].Name)
	for i := range sliceRuns {
		name := fmt.Sprintf("by-hand-%d", i)
		a.Service(t, ns, name, Global(), noSelector)
		svc := b.Service(t, ns, name, Global(), noSelector)
		watcher := client.Watcher(t)
		watcher.Target(hostPort(svc.Spec.ClusterIP, 9000))
		watcher.First(t, "refused", 10*time.Second) // the service is there, and nobody behind it
		begin := time.Now()
		a.writeSlice(t, ns, name, server.Status.PodIP)
		write = append(write, time.Since(begin))
		took = append(took, watcher.First(t, "yes", 10*time.Second).Sub(begin))
	}
	after, err := t.originToKernel(b.Nodes[0])
	t.OK(err, "metrics of the agent on %s", b.Nodes[0].Name)
	t.Note("from before the write until a new connection from %s succeeds (tried every 10 ms): %s", b.Name, spread(took))
	t.Logf("each: %v", took)
	t.Note("of that the API server's own answer to the write: %s", spread(write))
	t.Note("of that from %s's record of it to %s's kernel: mean %.0f ms of %.0f changes", a.Name, b.Nodes[0].Name, 1000*(after.sum-before.sum)/(after.count-before.count), after.count-before.count)
	if worst := slices.Max(took); worst > 500*time.Millisecond {
		t.Fatalf("the slowest took %v", worst)
	}
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
