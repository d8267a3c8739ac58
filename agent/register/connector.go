package register

import (
	"context"
	"errors"
	"fmt"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// Connector opens the stores of clusters, by the read half of the etcd API on
// their mesh ports. It implements agent.Connector. This node's certificate is
// shown to everybody; each cluster is verified by its own bundle alone.
type Connector struct{ Client *Client }

// Stores returns one store per mesh address. peer nil = the own cluster. It does
// not wait for any of them. Answers of peers are compressed: they come from far.
func (c Connector) Stores(ctx context.Context, cluster string, peer *clustermesh.Peer) ([]kvstore.Store, func(), error) {
	facts, ok := c.Client.Facts()
	if !ok {
		return nil, nil, errors.New("this node is not registered with its cluster yet")
	}
	cfg := etcd.Config{Endpoints: facts.MeshAddresses, Log: c.Client.log}
	bundles := c.Client.bundles
	if peer != nil {
		if len(peer.MeshAddresses) == 0 {
			return nil, nil, fmt.Errorf("cluster %s has no mesh address: it was admitted without one; let it leave and join again", peer.Name)
		}
		// A set of its own: nothing else is trusted on this connection, and it is
		// forgotten with it.
		bundles = certs.NewBundles()
		if err := bundles.Set(peer.Name, peer.CABundle); err != nil {
			return nil, nil, fmt.Errorf("CA bundle of cluster %s: %w", peer.Name, err)
		}
		cfg.Endpoints, cfg.Compress, cluster = peer.MeshAddresses, true, peer.Name
	}
	cfg.TLS = certs.ClientTLS(c.Client.Leaf(), bundles, certs.APIServer(cluster))
	stores, closeAll, err := etcd.Replicas(ctx, cfg)
	if err != nil {
		if closeAll != nil {
			closeAll()
		}
		return nil, nil, fmt.Errorf("connect to cluster %s: %w", cluster, err)
	}
	return stores, closeAll, nil
}
