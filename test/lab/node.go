package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// WireGuardPort of every node, UDP.
const WireGuardPort = 51871

// Node is one machine of a cluster: an agent, a tunnel process, pods.
type Node struct {
	Name   string
	Number int
	Dir    string

	// AgentFlags are given to the agent besides the usual ones, from its next start on.
	AgentFlags []string

	cluster *Cluster
	host    *host
	agent   *Process
	tunnel  *Process
	pods    []*Pod
}

func (c *Cluster) addNode(number int) (*Node, error) {
	n := &Node{Name: fmt.Sprintf("n%d", number), Number: number, cluster: c}
	n.Dir = filepath.Join(c.Dir, n.Name)
	if err := os.MkdirAll(filepath.Join(n.Dir, "bpf"), 0o700); err != nil {
		return nil, err
	}
	if err := n.make(); err != nil {
		return nil, err
	}
	return n, c.Apply("node-"+n.Name, Manifest(NodeObject(n.Name, n.PodPrefixes())))
}

// make makes the machine: namespace, cgroup, link, BPF filesystem.
func (n *Node) make() (err error) {
	c := n.cluster
	n.host, err = makeHost(c.lab.netnsName(c.Name+"-"+n.Name), filepath.Join(c.lab.cgroup, c.Name, n.Name))
	if err != nil {
		return err
	}
	if err := c.plug(n.host, n.port(), byte(10+n.Number)); err != nil {
		return err
	}
	if err := unix.Mount("bpf", n.bpffs(), "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", n.bpffs(), err)
	}
	return nil
}

// forget drops what a machine loses with its power. Its processes are dead.
func (n *Node) forget() error {
	var errs []error
	for _, p := range n.pods {
		errs = append(errs, p.host.delete())
	}
	errs = append(errs, n.cluster.unplug(n.port()), unmountAll(n.bpffs()), n.host.delete(), os.RemoveAll(n.wireguardSocket()))
	return errors.Join(errs...)
}

func (n *Node) port() string     { return fmt.Sprintf("c%d-%s", n.cluster.ID, n.Name) }
func (n *Node) bpffs() string    { return filepath.Join(n.Dir, "bpf") }
func (n *Node) stateDir() string { return filepath.Join(n.Dir, "state") }
func (n *Node) device() string {
	return fmt.Sprintf("wg%s%d-%d", n.cluster.lab.ID, n.cluster.ID, n.Number)
}
func (n *Node) wireguardSocket() string { return "/var/run/wireguard/" + n.device() + ".sock" }

// Socket of the node's agent.
func (n *Node) Socket() string { return filepath.Join(n.Dir, "agent.sock") }

// Netns is the name of the node's network namespace, for ip netns exec.
func (n *Node) Netns() string { return n.host.name }

// Cgroup of the node, under which its agent attaches.
func (n *Node) Cgroup() string { return n.host.cgroup }

// PinDir is where the node's BPF maps are pinned.
func (n *Node) PinDir() string { return n.bpffs() }

// PodPrefixes of the node, as its Node object has them.
func (n *Node) PodPrefixes() []netip.Prefix {
	id, nr := byte(n.cluster.ID), byte(n.Number)
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, nr, 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, id, 0, nr}), 64),
	}
}

// Underlay is the node's IPv4 address in the underlay.
func (n *Node) Underlay() netip.Addr {
	v4, _ := underlayPrefixes(n.cluster.ID)
	return hostAddr(v4, byte(10+n.Number))
}

// Underlay6 is the node's IPv6 address in the underlay.
func (n *Node) Underlay6() netip.Addr {
	_, v6 := underlayPrefixes(n.cluster.ID)
	return hostAddr(v6, byte(10+n.Number))
}

// Start starts tunnel process and agent, and waits until the agent is ready.
func (n *Node) Start(ctx context.Context) error {
	if err := n.StartTunnel(); err != nil {
		return err
	}
	return n.StartAgent(ctx)
}

// StartTunnel starts the process that holds the WireGuard device.
func (n *Node) StartTunnel() (err error) {
	n.tunnel, err = n.host.start(n.Dir, "tunnel", nil, nil,
		filepath.Join(n.cluster.lab.opts.BinDir, "tombolo-agent"), "tunnel", "--device", n.device())
	return err
}

// StartAgent starts the agent and waits until it is ready. A node that never
// registered gets a one-time token first.
func (n *Node) StartAgent(ctx context.Context) error {
	if err := n.LaunchAgent(ctx); err != nil {
		return err
	}
	return n.Ready(ctx)
}

// LaunchAgent starts the agent and does not wait.
func (n *Node) LaunchAgent(ctx context.Context) error {
	argv, err := n.agentArgv(ctx)
	if err != nil {
		return err
	}
	n.agent, err = n.host.start(n.Dir, "agent", nil, nil, argv...)
	return err
}

// agentArgv is the agent's command. A node that never registered gets a token.
func (n *Node) agentArgv(ctx context.Context) ([]string, error) {
	token := filepath.Join(n.Dir, "token")
	if _, err := os.Stat(token); errors.Is(err, os.ErrNotExist) {
		admin, err := n.cluster.Admin()
		if err != nil {
			return nil, err
		}
		res, err := admin.NodeToken(ctx, &pb.NodeTokenRequest{Node: n.Name, TtlSeconds: 600})
		if err != nil {
			return nil, fmt.Errorf("token for node %s: %w", n.Name, err)
		}
		if err := os.WriteFile(token, []byte(res.Token), 0o600); err != nil {
			return nil, err
		}
	}
	return append([]string{
		filepath.Join(n.cluster.lab.opts.BinDir, "tombolo-agent"),
		"--node", n.Name, "--state-dir", n.stateDir(), "--token-file", token,
		"--socket", n.Socket(), "--cgroup", n.host.cgroup, "--bpffs", n.bpffs(),
		"--wireguard-device", n.device(), "--wireguard-port", fmt.Sprint(WireGuardPort),
		"--underlay", n.Underlay().String() + "," + n.Underlay6().String()}, n.AgentFlags...), nil
}

// Wipe takes everything a fresh agent would find: the kernel's pinned maps and
// the snapshot. Certificate and keys stay. The agent must not run.
func (n *Node) Wipe() error {
	if err := unmountAll(n.bpffs()); err != nil {
		return err
	}
	if err := unix.Mount("bpf", n.bpffs(), "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", n.bpffs(), err)
	}
	return os.RemoveAll(filepath.Join(n.stateDir(), "snapshot"))
}

// Ready waits until the agent says so.
func (n *Node) Ready(ctx context.Context) error {
	return await(ctx, n.cluster.Name+"/"+n.Name+": agent ready", n.agent, func() error {
		_, err := n.Get(ctx, "/readyz")
		return err
	})
}

// Exec starts a process on the node, in no pod.
func (n *Node) Exec(name string, stdout io.Writer, argv ...string) (*Process, error) {
	return n.host.start(n.Dir, name, nil, stdout, argv...)
}

// ExecWith starts a process on the node that is talked to.
func (n *Node) ExecWith(name string, stdin io.Reader, stdout io.Writer, argv ...string) (*Process, error) {
	return n.host.start(n.Dir, name, stdin, stdout, argv...)
}

// StateDir is where the node's agent keeps its certificate and what it knows.
func (n *Node) StateDir() string { return n.stateDir() }

// Agent is the agent's process.
func (n *Node) Agent() *Process { return n.agent }

// Tunnel is the tunnel process.
func (n *Node) Tunnel() *Process { return n.tunnel }

// Get reads a path of the agent's socket; any status but 200 is an error.
func (n *Node) Get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.Socket())
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, res.Status, body)
	}
	return body, err
}

// GetJSON reads a path of the agent's socket into v.
func (n *Node) GetJSON(ctx context.Context, path string, v any) error {
	b, err := n.Get(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Dial opens a TCP connection from the node.
func (n *Node) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return n.host.dial(ctx, "tcp", addr)
}
