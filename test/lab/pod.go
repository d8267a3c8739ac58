package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// PodSpec says what pod to make.
type PodSpec struct {
	Namespace string // "" = default
	Name      string
	Labels    map[string]string
	Port      int                     // a container port named "http"; 0 = none
	Named     []clustermesh.NamedPort // further container ports
	Argv      []string                // started in the pod, and again when its node boots; empty = nothing runs
}

// Pod is a pod of the lab: a namespace of its own, wired by the CNI plugin.
type Pod struct {
	PodSpec
	UID       string
	Addresses []netip.Addr

	node *Node
	host *host
	main *Process
	prev json.RawMessage // what the plugin before Tombolo's made of it, in a chained cluster
}

// AddPod makes a pod the way Kubernetes does: the object first, then CNI ADD on
// its node, then its process.
func (n *Node) AddPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	p := &Pod{PodSpec: spec, node: n, UID: fmt.Sprintf("%s-%s-%s", n.cluster.Name, spec.Namespace, spec.Name)}
	if err := n.cluster.Apply("pod-"+p.Name, Manifest(PodObject(p, n.Name))); err != nil {
		return nil, err
	}
	n.pods = append(n.pods, p)
	return p, p.boot(ctx)
}

// boot makes the pod's namespace, runs CNI ADD and starts its process.
func (p *Pod) boot(ctx context.Context) (err error) {
	c := p.node.cluster
	p.host, err = makeHost(c.lab.netnsName(c.Name+"-"+p.node.Name+"-"+p.Name), filepath.Join(p.node.host.cgroup, p.Name))
	if err != nil {
		return err
	}
	if err := p.CNI(ctx, "ADD"); err != nil {
		return err
	}
	if len(p.Argv) == 0 {
		return nil
	}
	p.main, err = p.Exec(p.Name, nil, p.Argv...)
	return err
}

// CNI runs the plugin for this pod as the kubelet would.
func (p *Pod) CNI(ctx context.Context, command string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := p.runCNI(ctx, command)
	if err != nil || command != "ADD" {
		return err
	}
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return fmt.Errorf("CNI result %q: %w", out, err)
	}
	p.Addresses = nil
	for _, ip := range result.IPs {
		p.Addresses = append(p.Addresses, ip.Address.Addr())
	}
	if len(p.Addresses) == 0 {
		return fmt.Errorf("CNI ADD gave pod %s no address: %s", p.Name, out)
	}
	return nil
}

func (p *Pod) runCNI(ctx context.Context, command string) (string, error) {
	if p.node.cluster.chain != nil {
		return p.chained(ctx, command)
	}
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"tombolo","type":"tombolo-cni","socket":%q}`, p.node.Socket())
	if command == "CHECK" {
		return "", fmt.Errorf("the lab keeps no previous result for CHECK")
	}
	return p.node.host.run(ctx, p.cniEnv(command), conf, filepath.Join(p.node.cluster.lab.opts.BinDir, "tombolo-cni"))
}

// cniEnv is what a runtime says of the pod.
func (p *Pod) cniEnv(command string) []string {
	return []string{
		"CNI_COMMAND=" + command,
		"CNI_CONTAINERID=" + p.UID,
		"CNI_NETNS=" + p.host.netnsPath(),
		"CNI_IFNAME=eth0",
		"CNI_PATH=" + p.node.cluster.lab.opts.BinDir + ":" + CNIDir,
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s", p.Namespace, p.Name, p.UID),
	}
}

// Exec starts a process in the pod.
func (p *Pod) Exec(name string, stdout io.Writer, argv ...string) (*Process, error) {
	return p.host.start(p.node.Dir, name, nil, stdout, argv...)
}

// Run runs a command in the pod to its end.
func (p *Pod) Run(ctx context.Context, argv ...string) (string, error) {
	return p.host.run(ctx, nil, "", argv...)
}

// Dial opens a TCP or UDP connection to a literal address from the pod's network
// namespace, but not its cgroup: packets are translated, not sockets.
func (p *Pod) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return p.host.dial(ctx, network, addr)
}

// Main is the pod's process, nil if it has none.
func (p *Pod) Main() *Process { return p.main }

// ShellCommand is a line for a shell that starts command as if in the pod: in
// its network namespace and in its cgroup, where connections are translated.
func (p *Pod) ShellCommand(command string) string {
	return fmt.Sprintf("sh -c 'echo $$ > %s/cgroup.procs; exec ip netns exec %s %s'", p.host.cgroup, p.host.name, command)
}

// Netns is the name of the pod's network namespace.
func (p *Pod) Netns() string { return p.host.name }

// Retire deletes the pod's object; its process lives on, as in a grace period,
// until Remove.
func (p *Pod) Retire() error { return p.node.cluster.Unapply("pod-" + p.Name) }

// Remove ends the pod: the object if it is still there, its process, CNI DEL,
// the namespace.
func (p *Pod) Remove(ctx context.Context) error {
	if err := p.Retire(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := killCgroup(p.host.cgroup); err != nil {
		return err
	}
	if err := p.CNI(ctx, "DEL"); err != nil {
		return err
	}
	p.node.pods = slices.DeleteFunc(p.node.pods, func(q *Pod) bool { return q == p })
	return p.host.delete()
}
