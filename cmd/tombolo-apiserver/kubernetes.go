package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/spf13/pflag"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
)

// kubeOptions are the flags about Kubernetes.
type kubeOptions struct {
	on           bool
	kubeconfig   string
	context      string
	namespace    string
	meshConfig   string
	audience     string
	agentAccount string
	join         kubeJoinOptions
	mcs          bool
	exports      bool // ServiceExports have an effect
	clusterSet   string
}

func (o *kubeOptions) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.on, "kubernetes", false, "take objects from the Kubernetes API instead of a folder, by the credentials of the pod this runs in")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "file with the credentials, outside of a cluster")
	f.StringVar(&o.context, "kube-context", "", "context of the kubeconfig (default: its current one)")
	f.StringVar(&o.namespace, "namespace", "", "Tombolo's own namespace (default: the pod's, else "+kube.DefaultNamespace+")")
	f.StringVar(&o.meshConfig, "mesh-config", "tombolo-mesh", "ConfigMap in the own namespace in which the leader keeps the addresses of the mesh port and the CA bundle, for the agents; empty = none")
	f.StringVar(&o.audience, "token-audience", "tombolo", "audience of the service-account tokens that nodes register with")
	f.BoolVar(&o.mcs, "mcs", false, "run the Multi-Cluster Services API: ServiceExports take effect, ServiceImports and what belongs to them are written (needs --kubernetes)")
	f.StringVar(&o.clusterSet, "cluster-set", "tombolo", "name of the mesh in the ClusterProperty clusterset.k8s.io; alike in all its clusters")
	f.StringVar(&o.agentAccount, "agent-service-account", "", "namespace/name of the ServiceAccount whose tokens may register nodes (default: tombolo-agent in the own namespace)")
	o.join.flags(f)
}

// into has the server live on Kubernetes.
func (o *kubeOptions) into(cfg *apiserver.Config, log *slog.Logger) error {
	client, err := kube.Open(kube.Config{
		Kubeconfig: o.kubeconfig, Context: o.context, Namespace: o.namespace, UserAgent: "tombolo-apiserver/" + built(), Log: log,
	})
	if err != nil {
		return err
	}
	if o.agentAccount == "" {
		o.agentAccount = client.Namespace + "/tombolo-agent"
	}
	if ns, name, ok := strings.Cut(o.agentAccount, "/"); !ok || ns == "" || name == "" {
		return fmt.Errorf("--agent-service-account: %q is not namespace/name", o.agentAccount)
	}
	if o.audience == "" {
		return errors.New("--token-audience is empty; a token must be meant for Tombolo alone, give a name")
	}
	cfg.Source = kube.NewSource(kube.SourceConfig{Client: client, ServiceExports: o.exports, Log: log})
	cfg.SlicesGiven = true
	if o.meshConfig != "" {
		_, port, err := net.SplitHostPort(cfg.Listen)
		if err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
		cfg.Parts = append(cfg.Parts, kube.MeshConfig{Client: client, Name: o.meshConfig, Port: port, Advertise: cfg.Advertise}.Part())
	}
	cfg.Parts = append(cfg.Parts, kube.Events{Client: client}.Part())
	cfg.ReviewNode = kube.NewReviewer(client, o.audience, o.agentAccount).ReviewNode
	o.join.into(cfg, client)
	if o.mcs {
		cfg.Multicluster = true
		cfg.Parts = append(cfg.Parts, kube.MCS(kube.MCSConfig{Client: client, ClusterSet: o.clusterSet, Log: log}))
	}
	return nil
}
