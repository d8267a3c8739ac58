package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/dns"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd/embed"
)

// options are the flags.
type options struct {
	cluster                     string
	id                          uint16
	stateDir                    string
	manifests                   string
	kube                        kubeOptions
	listen                      string
	advertise                   []string
	socket                      string
	etcd                        apiserver.EtcdConfig
	caCert                      string
	caKey                       string
	caRoots                     string
	podPrefixes, tunnelPrefixes []string
	topology                    string
	metrics                     string
	gossipRotation              time.Duration
	dns                         string
	logLevel                    string
}

const example = `  # A cluster with an etcd of its own in the process:
  tombolo-apiserver --cluster aws --cluster-id 1 --state-dir /var/lib/tombolo/apiserver \
    --manifests /etc/tombolo/manifests --pod-prefix 10.1.0.0/16 \
    --listen :9443 --advertise mesh.aws.example:9443 --socket /run/tombolo/apiserver.sock

  # On Kubernetes, in a pod:
  tombolo-apiserver --cluster aws --cluster-id 1 --kubernetes --pod-prefix 10.1.0.0/16 \
    --advertise mesh.aws.example:9443

  # Two replicas over an external etcd: run this on two machines.
  tombolo-apiserver --cluster gcp --cluster-id 2 --state-dir /var/lib/tombolo/apiserver \
    --manifests /etc/tombolo/manifests --pod-prefix 10.2.0.0/16 \
    --listen :9443 --advertise a.gcp.example:9443,b.gcp.example:9443 \
    --socket /run/tombolo/apiserver.sock --ca-cert ca.pem --ca-key ca.key \
    --etcd-endpoints https://etcd-1:2379,https://etcd-2:2379 \
    --etcd-ca etcd-ca.pem --etcd-cert client.pem --etcd-key client.key`

// command is the command line; serve runs what it says.
func command(stdout, stderr io.Writer, serve func(context.Context, apiserver.Config) error) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           "tombolo-apiserver",
		Short:         "The mesh API server of a cluster",
		Long:          "tombolo-apiserver reads Kubernetes objects, publishes them as records in the\ncluster's etcd, and serves them to the cluster's own agents and to other clusters\nof the mesh. Look at it and change it with tombolo, through the admin socket.",
		Example:       example,
		Version:       built(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var level slog.Level
			if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
				return fmt.Errorf("--log-level: %q is not one of debug, info, warn, error", o.logLevel)
			}
			log := newLog(stderr, level)
			cfg, err := o.config(log)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg)
		},
	}
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.cluster, "cluster", "", "name of the cluster, unique in the mesh: a DNS label")
	f.Uint16Var(&o.id, "cluster-id", 0, "number of the cluster, 1–4095, unique in the mesh")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/tombolo/apiserver", "folder for all that a restart must know: CA, certificate, embedded etcd")
	f.StringVar(&o.manifests, "manifests", "", "folder tree of Kubernetes manifests (.yaml, .yml, .json), watched")
	o.kube.flags(f)
	f.StringVar(&o.listen, "listen", ":9443", "host:port of the mesh port")
	f.StringSliceVar(&o.advertise, "advertise", nil, "host:port at which other clusters and agents reach the mesh port, in order of preference; an IP address alone takes the port of --listen (default: --listen)")
	f.StringVar(&o.socket, "socket", "/run/tombolo/apiserver.sock", "Unix socket of the admin calls")
	f.StringSliceVar(&o.podPrefixes, "pod-prefix", nil, "prefix that all pod addresses of the cluster lie in; give it for each family (default: the union of the nodes')")
	f.StringSliceVar(&o.tunnelPrefixes, "tunnel-prefix", nil, "prefix that nodes have their tunnel addresses of, by their numbers, where another CNI plugin gives pods addresses (agents with --cni-mode=chained): one of each family, used by nobody else; needs --pod-prefix (default: nodes have pod prefixes of their own)")
	f.StringVar(&o.topology, "topology", "mesh", "mesh (every node is a WireGuard peer of every node of the other clusters) or gateway (the Nodes labelled tombolo.io/gateway: \"true\" alone are; they carry what the others send and get)")
	f.StringSliceVar(&o.etcd.Endpoints, "etcd-endpoints", nil, "URLs of an external etcd (default: one embedded in this process)")
	f.StringVar(&o.etcd.CA, "etcd-ca", "", "file with the CA of the external etcd, PEM")
	f.StringVar(&o.etcd.Cert, "etcd-cert", "", "file with the client certificate for it, PEM")
	f.StringVar(&o.etcd.Key, "etcd-key", "", "file with the client key for it, PEM")
	f.StringVar(&o.caCert, "ca-cert", "", "file with the cluster's CA certificate and what is above it, PEM (default: one is made at first start)")
	f.StringVar(&o.caKey, "ca-key", "", "file with the key of the cluster's CA, PEM")
	f.StringVar(&o.caRoots, "ca-roots", "", "file with further roots to announce to nodes and peers, PEM: those to come and those to go when a CA is rolled over (the CA files are read again when they change, and on SIGHUP)")
	f.DurationVar(&o.gossipRotation, "gossip-key-rotation", 24*time.Hour, "how long the gossip among the cluster's agents is encrypted by one key; 0 = for good")
	f.StringVar(&o.metrics, "metrics", "", "host:port of Prometheus metrics, /livez and /readyz (default: none)")
	f.StringVar(&o.dns, "dns", "", "host:port to serve the zone clusterset.local at, by UDP and TCP (default: none)")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(relayCommand(stdout))
	return cmd
}

// config makes of the flags what Run takes.
func (o *options) config(log *slog.Logger) (apiserver.Config, error) {
	advertise, err := advertised(o.advertise, o.listen)
	if err != nil {
		return apiserver.Config{}, err
	}
	cfg := apiserver.Config{
		Cluster: o.cluster, ID: clustermesh.ID(o.id), StateDir: o.stateDir,
		Listen: o.listen, Advertise: advertise, Socket: o.socket, Metrics: o.metrics,
		CACert: o.caCert, CAKey: o.caKey, CARoots: o.caRoots, GossipRotation: o.gossipRotation, Version: built(), Log: log,
	}
	if cfg.Topology, err = clustermesh.ParseTopology(o.topology); err != nil {
		return cfg, fmt.Errorf("--topology: %w", err)
	}
	switch {
	case o.kube.on && o.manifests != "":
		return cfg, errors.New("--kubernetes and --manifests exclude one another; give one of them")
	case !o.kube.on && o.kube.kubeconfig+o.kube.context != "":
		return cfg, errors.New("--kubeconfig and --kube-context say which Kubernetes is meant; give --kubernetes, too")
	case !o.kube.on && o.kube.mcs:
		return cfg, errors.New("--mcs writes ServiceImports to Kubernetes; give --kubernetes, too (with --manifests, ServiceExports take effect without it)")
	case !o.kube.on && o.manifests == "":
		return cfg, errors.New("--manifests is empty; give the folder that holds the cluster's Kubernetes manifests, or --kubernetes")
	}
	if (o.caCert == "") != (o.caKey == "") {
		return cfg, errors.New("--ca-cert and --ca-key belong together; give both or neither")
	}
	if err := o.kube.join.check(o.kube.on, o.caCert+o.caKey+o.caRoots); err != nil {
		return cfg, err
	}
	if o.kube.on {
		o.kube.exports = o.kube.mcs || o.dns != ""
		if err := o.kube.into(&cfg, log); err != nil {
			return cfg, err
		}
	} else {
		cfg.Source = apiserver.NewFolder(apiserver.FolderConfig{Dir: o.manifests, Cache: filepath.Join(o.stateDir, "manifests"), Log: log})
	}
	if o.dns != "" {
		cfg.Multicluster = true
		cfg.Parts = append(cfg.Parts, apiserver.Part{Name: "DNS", Run: func(ctx context.Context, on *apiserver.Running) error {
			return dns.Serve(ctx, o.dns, dns.Zone{Source: on.Exports, Cluster: on.Cluster}, log)
		}})
	}
	for _, text := range o.podPrefixes {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return cfg, fmt.Errorf("--pod-prefix: %q is no prefix; write it as 10.1.0.0/16", text)
		}
		cfg.PodPrefixes = append(cfg.PodPrefixes, p)
	}
	for _, text := range o.tunnelPrefixes {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return cfg, fmt.Errorf("--tunnel-prefix: %q is no prefix; write it as 10.255.0.0/16", text)
		}
		cfg.TunnelPrefixes = append(cfg.TunnelPrefixes, p)
	}
	if len(o.etcd.Endpoints) == 0 {
		cfg.Open = func(ctx context.Context) (apiserver.StoreHandle, error) { return openEmbedded(ctx, o.stateDir, log) }
		return cfg, nil
	}
	tls, err := o.etcd.TLS()
	if err != nil {
		return cfg, err
	}
	external := etcd.Config{Endpoints: o.etcd.Endpoints, TLS: tls, Log: log}
	cfg.Open = func(ctx context.Context) (apiserver.StoreHandle, error) { return openExternal(ctx, external) }
	return cfg, nil
}

func openEmbedded(ctx context.Context, stateDir string, log *slog.Logger) (apiserver.StoreHandle, error) {
	dir := filepath.Join(stateDir, "etcd")
	server, err := embed.Start(ctx, embed.Config{Dir: dir, Log: log.With("part", "etcd")})
	if err != nil {
		return apiserver.StoreHandle{}, err
	}
	return apiserver.StoreHandle{Store: server.Store(), Text: "embedded etcd in " + dir, Close: server.Close}, nil
}

func openExternal(ctx context.Context, cfg etcd.Config) (apiserver.StoreHandle, error) {
	store, err := etcd.Open(ctx, cfg)
	if err != nil {
		return apiserver.StoreHandle{}, err
	}
	replicas, closeReplicas, err := etcd.Replicas(ctx, cfg)
	if err != nil {
		store.Close()
		return apiserver.StoreHandle{}, err
	}
	return apiserver.StoreHandle{
		Store: store, Replicas: replicas, Text: fmt.Sprintf("etcd at %v", cfg.Endpoints),
		Close: func() { closeReplicas(); store.Close() },
	}, nil
}

func serve(ctx context.Context, cfg apiserver.Config) error {
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	cfg.Reload = reload
	err := apiserver.Run(ctx, cfg)
	if err != nil {
		cfg.Log.Error("mesh API server ended", "err", err)
	}
	return err
}

// version of the build; set by the linker for releases.
var version string

// built is the version of the build: the linker's, the module's, or the commit's.
func built() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	if v == "" || v == "(devel)" {
		return "devel"
	}
	return v
}
