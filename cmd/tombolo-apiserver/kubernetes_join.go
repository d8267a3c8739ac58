package main

import (
	"errors"

	"github.com/spf13/pflag"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
)

// kubeJoinOptions are the flags about what joins clusters, kept in Kubernetes.
type kubeJoinOptions struct {
	caSecret   string
	caSupplied bool
	peers      bool
}

func (o *kubeJoinOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.caSecret, "ca-secret", "", "Secret (kubernetes.io/tls) in the own namespace that keeps the cluster's CA for all replicas; the first one that starts makes it")
	f.BoolVar(&o.caSupplied, "ca-secret-supplied", false, "the Secret of --ca-secret is made and renewed by somebody else, as cert-manager does for a Certificate with isCA: wait for it")
	f.BoolVar(&o.peers, "mesh-peers", true, "with --kubernetes, join and leave clusters as the MeshPeers of the own namespace say, if their definition is installed")
}

// check is for servers without Kubernetes, too.
func (o *kubeJoinOptions) check(on bool, files string) error {
	switch {
	case o.caSupplied && o.caSecret == "":
		return errors.New("--ca-secret-supplied says who makes the Secret of --ca-secret; give that, too")
	case o.caSecret != "" && !on:
		return errors.New("--ca-secret needs --kubernetes")
	case o.caSecret != "" && files != "":
		return errors.New("--ca-secret and --ca-cert, --ca-key, --ca-roots exclude one another; give the one or the other")
	}
	return nil
}

func (o *kubeJoinOptions) into(cfg *apiserver.Config, client *kube.Client) {
	if o.caSecret != "" {
		cfg.CAKeeper = kube.NewCASecret(client, o.caSecret, cfg.Cluster, o.caSupplied)
	}
	if o.peers {
		cfg.Parts = append(cfg.Parts, kube.PeersPart(client))
	}
}
