// tombolo-agent is the node agent: it follows what the clusters of the mesh say
// and keeps this node's kernel so. `tombolo-agent tunnel` holds a user-space
// WireGuard device, `tombolo-agent cleanup` takes everything off a node.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// maxSlowStart: who wants a return to take longer drains instead.
const maxSlowStart = time.Hour

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "tombolo-agent:", err)
		stop()
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	node, stateDir, tokenFile, socket string
	meshConfig, accountToken          string
	cgroup, bpffs                     string
	device                            string
	port, gossipPort                  int
	endpoint                          string
	slowStart                         time.Duration
	underlay                          []string
	metrics, logLevel                 string
	encrypt, policyClusters           string
	masquerade                        bool
	natPorts                          string
	nodePortAddrs                     []string
	uplinks                           []string
	xdp                               []string
	xdpModes                          map[string]bool // what xdp says: generic?
	mapSizes                          []string
	sysctlDir                         string
	sizes                             bpf.Sizes // what mapSizes and the memory say
	cni                               cniOptions
}

func newCommand() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "tombolo-agent",
		Short: "Keep this node's kernel as the clusters of the mesh say",
		Long: `tombolo-agent follows its own cluster and every cluster joined with it, and writes
what they say into this node's kernel: BPF maps and programs, WireGuard peers, routes.
It registers the node by a one-time token at its first start and by its own certificate
afterwards; it starts from what its state directory holds when no server is in reach.

Stopping it takes nothing away: what is in the kernel keeps working, and the next start
goes on from there. To take everything off the node, run "tombolo-agent cleanup".

Environment: GOGC is Go's trade of memory for processor time (here 50 by default);
TOMBOLO_CPUPROFILE=DIR writes a CPU profile of the whole run to DIR when it ends.`,
		Example: `  tombolo-agent --node node-1 --state-dir /var/lib/tombolo/agent --token-file /etc/tombolo/token \
      --socket /run/tombolo/agent.sock --cgroup /sys/fs/cgroup --bpffs /sys/fs/bpf/tombolo \
      --wireguard-device tombolo0 --wireguard-port 51820`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(o.logLevel)
			if err != nil {
				return err
			}
			if err := linux.SysctlsAt(o.sysctlDir); err != nil {
				return fmt.Errorf("--sysctl-dir: %w; give the folder where the node's /proc/sys/net is mounted", err)
			}
			if o.node == "" {
				return fmt.Errorf("--node is not set: give this node's name, as its cluster knows it")
			}
			if o.xdpModes, err = parseXDP(o.xdp); err != nil {
				return err
			}
			if o.gossipPort < 0 || o.gossipPort > 65535 {
				return fmt.Errorf("--gossip-port %d: want a port from 1 to 65535, or 0 for none", o.gossipPort)
			}
			if o.slowStart < 0 || o.slowStart > maxSlowStart {
				return fmt.Errorf("--slow-start %v: want 0s to %v", o.slowStart, maxSlowStart)
			}
			if err := o.cni.check(); err != nil {
				return err
			}
			if err := o.checkEndpoint(); err != nil {
				return err
			}
			if o.accountToken != "" && o.meshConfig == "" {
				return errors.New("--service-account-token needs --mesh-config: the token goes only to a server that its CA bundle verifies")
			}
			sizes, err := mapSizes(o.mapSizes)
			if err != nil {
				return err
			}
			o.sizes = sizes
			stop, err := profile()
			if err != nil {
				return err
			}
			defer stop()
			frugal()
			return run(cmd.Context(), o, log)
		},
	}
	f := root.Flags()
	f.StringVar(&o.node, "node", "", "this node's `NAME`, as its cluster knows it")
	f.StringVar(&o.tokenFile, "token-file", "", "`FILE` with the one-time node token; needed at the first start only")
	f.StringVar(&o.meshConfig, "mesh-config", "", "`DIR` with the cluster's name, the mesh API servers' addresses and the CA bundle (files cluster, addresses, ca-bundle.pem): on Kubernetes the ConfigMap that they keep; followed")
	f.StringVar(&o.accountToken, "service-account-token", "", "`FILE` with the service-account token of the pod this runs in, instead of a node token; needs --mesh-config")
	f.StringVar(&o.cgroup, "cgroup", "", "cgroup v2 `PATH` whose sockets are translated (default: the root of the first cgroup2 mount)")
	f.IntVar(&o.port, "wireguard-port", 51820, "UDP `PORT` of the tunnel")
	f.StringVar(&o.endpoint, "wireguard-endpoint", "", "`ADDR:PORT` at which other clusters' nodes reach the tunnel, where NAT is in front of it; none = nowhere: this node sends first, and they answer where that came from (default: the first underlay address and --wireguard-port)")
	f.DurationVar(&o.slowStart, "slow-start", 30*time.Second, "how `LONG` a node or cluster that was down for a while takes to get all of its share of new connections again; 0 = at once, and shares do not follow health at all")
	f.IntVar(&o.gossipPort, "gossip-port", 9444, "UDP and TCP `PORT` at the first underlay address by which the agents of this cluster watch one another and agree on which nodes are down; the same on all of them; 0 = each agent judges by its own probes alone")
	f.StringSliceVar(&o.underlay, "underlay", nil, "`ADDR`[,…] at which other nodes reach this one; the first carries the tunnel (default: the addresses of all links)")
	f.StringVar(&o.metrics, "metrics", "", "`ADDR` (host:port) that serves Prometheus metrics; empty = on the socket only")
	f.StringVar(&o.encrypt, "encrypt", "clusters", "`WHAT` goes through WireGuard: clusters (what goes to other clusters, and to nodes of the own one on another L2) or all (every other node)")
	f.StringVar(&o.policyClusters, "policy-clusters", "own", "`WHICH` clusters' pods a policy's selector means that does not name tombolo.io/cluster: own or all")
	f.BoolVar(&o.masquerade, "masquerade", true, "pods reach what is outside the mesh by this node's address")
	f.StringVar(&o.natPorts, "nat-ports", "61000-65535", "`FIRST-LAST` source port of connections that are given an address of this node")
	f.StringSliceVar(&o.nodePortAddrs, "nodeport-addresses", nil, "`PREFIX`[,…] in which this node's underlay addresses answer to node ports (default: all of them do)")
	f.StringSliceVar(&o.uplinks, "uplink", nil, "`DEVICE`[,…] by which the world reaches this node (default: those that carry the underlay addresses)")
	f.StringSliceVar(&o.xdp, "xdp", nil, "uplink `DEVICE`[,…] whose driver sends node ports' packets for other nodes on by XDP (DEVICE:generic: the kernel, if the driver cannot; slower); not for devices that carry VLANs (default: none)")
	f.StringArrayVar(&o.mapSizes, "map-size", nil, "`NAME=ROWS` of a BPF map, repeatable (default: by the machine's memory); the maps: "+strings.Join(bpf.SizeNames(), ", "))
	f.StringVar(&o.sysctlDir, "sysctl-dir", "/proc/sys/net", "`DIR` where the node's /proc/sys/net is; in a container its own is read-only")
	f.StringVar(&o.cni.mode, "cni-mode", "main", "`MODE`: main (Tombolo connects pods) or chained (another CNI plugin does, and carries what goes between pods of this cluster; Tombolo's comes after it)")
	f.StringVar(&o.cni.plugin, "cni-plugin", "", "`FILE` of the plugin to install (default: tombolo-cni beside this program)")
	f.StringVar(&o.cni.chain, "cni-chain", "", "`NAME` of the configuration's file or network to chain to (default: the first that is not Tombolo's)")
	shared(root, &o)
	root.AddCommand(newTunnel(), newCleanup(), newMountBPFFS(), newRelay())
	return root
}

// shared are the flags that say what is this agent's on the node.
func shared(cmd *cobra.Command, o *options) {
	f := cmd.Flags()
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/tombolo/agent", "`DIR` for keys, certificate, snapshot and pod addresses (mode 0700)")
	f.StringVar(&o.socket, "socket", "/run/tombolo/agent.sock", "`PATH` of the Unix socket of the API")
	f.StringVar(&o.bpffs, "bpffs", "/sys/fs/bpf/tombolo", "`DIR` of a bpffs for pinned maps and links")
	f.StringVar(&o.device, "wireguard-device", "tombolo0", "`NAME` of the WireGuard device; unique on the machine")
	o.cni.flags(cmd)
	f.StringVar(&o.logLevel, "log-level", "info", "`LEVEL`: debug, info, warn or error")
}

func logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: allowed are debug, info, warn, error", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}
