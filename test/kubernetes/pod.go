package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// Pod is one, with its cluster.
type Pod struct {
	*corev1.Pod
	cluster *Cluster
}

func (p *Pod) String() string { return p.cluster.Name + "/" + p.Name }

// IPs are its addresses, as in a URL's host part for IPv6.
func (p *Pod) IPs() []string {
	var out []string
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// Exec runs the workloads' program in the pod, as kubectl exec does.
func (p *Pod) Exec(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := p.attach(ctx, nil, &out, "echo", append([]string{"/labecho"}, args...)...)
	return out.String(), err
}

func (p *Pod) attach(ctx context.Context, stdin io.Reader, out io.Writer, container string, command ...string) error {
	req := p.cluster.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	exec, err := remotecommand.NewWebSocketExecutor(p.cluster.Config, "GET", req.URL().String())
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	if err := exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: out, Stderr: &stderr}); err != nil {
		return fmt.Errorf("%s: %s: %w: %s", p, strings.Join(command, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// Logs are what the pod has printed.
func (p *Pod) Logs(ctx context.Context) (string, error) {
	b, err := p.cluster.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
	return string(b), err
}

// Answer is what an echo server says of itself and of whom it sees.
type Answer struct{ Host, Node, Cluster, From string }

// Ask asks a target n times, with "get", "tcp" or "udp". No answer at all is an error.
func (p *Pod) Ask(ctx context.Context, n int, how, target string) ([]Answer, error) {
	out, err := p.Exec(ctx, how, "-n", strconv.Itoa(n), "-t", "2s", target)
	if err != nil {
		return nil, fmt.Errorf("%s: %s %s: %w: %s", p, how, target, err, strings.TrimSpace(out))
	}
	return answers(out), nil
}

func answers(text string) []Answer {
	var out []Answer
	for line := range strings.Lines(text) {
		words := map[string]string{}
		for _, w := range strings.Fields(line) {
			if k, v, ok := strings.Cut(w, "="); ok {
				words[k] = v
			}
		}
		out = append(out, Answer{Host: words["host"], Node: words["node"], Cluster: words["cluster"], From: words["from"]})
	}
	return out
}

// source is the address that the server saw.
func (a Answer) source() string {
	ap, err := netip.ParseAddrPort(a.From)
	if err != nil {
		return a.From
	}
	return ap.Addr().Unmap().String()
}

// clustersOf are the clusters that answered, each once.
func clustersOf(all []Answer) []string {
	seen := map[string]bool{}
	for _, a := range all {
		seen[a.Cluster] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func hostsOf(all []Answer) []string {
	seen := map[string]bool{}
	for _, a := range all {
		seen[a.Host] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func url(ip string, port int) string { return "http://" + hostPort(ip, port) + "/" }

func hostPort(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }

// settle is what a change may take to be everywhere before a case complains of it.
const settle = 15 * time.Second

// Reaches waits until the pod is answered over HTTP, TCP and UDP at these addresses.
func (p *Pod) Reaches(t *T, what string, ips []string, http, tcp int) {
	for _, ip := range ips {
		for how, target := range map[string]string{"get": url(ip, http), "tcp": hostPort(ip, tcp), "udp": hostPort(ip, tcp)} {
			t.Within(settle, fmt.Sprintf("%s reaches %s (%s %s)", p, what, how, target), func() error {
				_, err := p.Ask(t.ctx, 1, how, target)
				return err
			})
		}
	}
}

// Refused waits until the pod gets no answer there, and then for a while that it stays so.
func (p *Pod) Refused(t *T, what, target string) {
	try := func() error {
		if out, err := p.Exec(t.ctx, "tcp", "-t", "500ms", target); err == nil {
			return errors.New("it was answered: " + out)
		}
		return nil
	}
	t.Within(settle, fmt.Sprintf("%s does not reach %s", p, what), try)
	t.During(time.Second, fmt.Sprintf("%s does not reach %s any more", p, what), try)
}
