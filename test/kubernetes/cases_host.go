package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

var hostCases = []Case{
	{Name: "kubectl", Claim: "exec, logs and port-forward work", Run: kubectl},
	{Name: "node-port", Claim: "every node answers at a node port to clients outside, with backends on this node and on others", Run: nodePort},
	{Name: "host-to-pods", Claim: "programs of the host reach pods of their own node and of others", Run: hostToPods},
}

func kubectl(t *T) {
	ns := t.Namespace()
	for _, c := range t.Clusters {
		for _, p := range c.Deploy(t, ns, "web", int32(len(c.Nodes))) {
			out, err := p.Exec(t.ctx, "get", "http://127.0.0.1:8080/")
			t.OK(err, "exec")
			if got := answers(out)[0].Host; got != p.Name {
				t.Fatalf("exec in %s came out in %q", p, got)
			}
			t.OK(forwarded(t.ctx, p), "port-forward to %s", p)
		}
		talker := c.Pod(t, ns, "talker", Args("watch", "127.0.0.1:1"))
		t.Within(settle, "logs of "+talker.String(), func() error {
			text, err := talker.Logs(t.ctx)
			if err == nil && !strings.Contains(text, "refused") {
				err = fmt.Errorf("they are %q", text)
			}
			return err
		})
	}
}

// forwarded asks a pod through a forwarded port.
func forwarded(ctx context.Context, p *Pod) error {
	c := p.cluster
	roundTripper, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return err
	}
	req := c.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("portforward")
	stop, ready := make(chan struct{}), make(chan struct{})
	defer close(stop)
	var stderr bytes.Buffer
	f, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, "POST", req.URL()), []string{"0:8080"}, stop, ready, io.Discard, &stderr)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		return fmt.Errorf("%w: %s", err, &stderr)
	case <-time.After(10 * time.Second):
		return errors.New("not ready within 10 s")
	}
	ports, err := f.GetPorts()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	get, _ := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local), nil)
	answer, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(get)
	if err != nil {
		return fmt.Errorf("%w: %s", err, &stderr)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answers(string(body))[0].Host != p.Name {
		err = fmt.Errorf("answered: %s", body)
	}
	return err
}

// outside asks from beyond the nodes: from the lab's router, or from this machine.
func (t *T) outside(how string, ip string, port int) ([]Answer, error) {
	if t.Lab != nil {
		target := hostPort(ip, port)
		if how == "get" {
			target = url(ip, port)
		}
		out, err := t.Lab.Run(t.ctx, "u", t.Lab.echo(), how, target)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(out))
		}
		return answers(out), nil
	}
	ctx, cancel := context.WithTimeout(t.ctx, 2*time.Second)
	defer cancel()
	if how == "get" {
		get, err := http.NewRequestWithContext(ctx, "GET", url(ip, port), nil)
		if err != nil {
			return nil, err
		}
		answer, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(get)
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return answers(string(body)), err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, how, hostPort(ip, port))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	until, _ := ctx.Deadline()
	conn.SetDeadline(until)
	fmt.Fprintln(conn, "hi")
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	return answers(string(b[:n])), err
}

func nodePort(t *T) {
	ns := t.Namespace()
	for _, c := range t.Clusters {
		svc := c.Service(t, ns, "web", NodePort())
		servers := c.Deploy(t, ns, "web", int32(len(c.Nodes)))
		ports := map[string]int32{}
		for _, p := range svc.Spec.Ports {
			ports[map[string]string{"http": "get", "tcp": "tcp", "udp": "udp"}[p.Name]] = p.NodePort
		}
		for _, n := range c.Nodes {
			for _, addr := range n.Addrs {
				for how, port := range ports {
					answered := map[string]bool{}
					t.Within(settle, fmt.Sprintf("%s %s:%d from outside", how, addr, port), func() error {
						got, err := t.outside(how, addr.String(), int(port))
						if err != nil {
							return err
						}
						if len(got) == 0 || got[0].Host == "" {
							return errors.New("answered, but not by a pod of the case")
						}
						answered[got[0].Host] = true
						if len(answered) < len(servers) {
							return fmt.Errorf("so far %d of %d backends have answered", len(answered), len(servers))
						}
						return nil
					})
				}
			}
		}
		t.localPolicy(c, ns)
	}
}

// localPolicy: with externalTrafficPolicy Local a node with a backend shows it the
// client's own address, and one without does not answer.
func (t *T) localPolicy(c *Cluster, ns string) {
	if t.Lab == nil || len(c.Nodes) < 2 {
		return
	}
	one := c.Deploy(t, ns, "one", 1, On(c.Nodes[0]))[0]
	svc := c.Service(t, ns, "one", NodePort(), func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
	port := int(svc.Spec.Ports[1].NodePort)
	routers := t.routerAddrs()
	for _, addr := range c.Nodes[0].Addrs {
		t.Within(settle, "the client's address is kept", func() error {
			got, err := t.outside("tcp", addr.String(), port)
			if err == nil && (got[0].Host != one.Name || !slices.Contains(routers, got[0].source())) {
				err = fmt.Errorf("%s sees %s, none of %v", got[0].Host, got[0].From, routers)
			}
			return err
		})
	}
	for _, addr := range c.Nodes[1].Addrs {
		if _, err := t.outside("tcp", addr.String(), port); err == nil {
			t.Fatalf("a node without a backend answered at %s:%d, with externalTrafficPolicy Local", addr, port)
		}
	}
}

// routerAddrs are those of the lab's router.
func (t *T) routerAddrs() []string {
	out, err := t.Lab.Run(t.ctx, "u", "ip", "-o", "addr", "show", "scope", "global")
	t.OK(err, "the router's addresses")
	var addrs []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 3 {
			addr, _, _ := strings.Cut(f[3], "/")
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func hostToPods(t *T) {
	ns := t.Namespace()
	for _, c := range t.Clusters {
		servers := c.Deploy(t, ns, "web", int32(len(c.Nodes)))
		for _, host := range hostPods(t, c, ns) {
			for _, s := range servers {
				host.Reaches(t, s.String(), s.IPs(), 8080, 9000)
			}
		}
		// The kubelet's probes are what made the servers ready; they hold.
		t.During(3*time.Second, "probes of "+c.Name, func() error {
			for _, s := range servers {
				p, err := c.Client.CoreV1().Pods(ns).Get(t.ctx, s.Name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if !isReady(p) {
					return fmt.Errorf("%s is not ready any more: %s", s, notReady(p))
				}
			}
			return nil
		})
	}
}

func fields(text string) []string { return strings.Fields(text) }
