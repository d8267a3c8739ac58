package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// LeaveMesh takes this cluster out of every peer and every peer out of this
// one. A peer that cannot be told stays, unless force: then it is forgotten
// here, and its operator must do the same there.
func (p *Port) LeaveMesh(ctx context.Context, force bool) (left, unreachable []string, err error) {
	p.joinMu.Lock()
	defer p.joinMu.Unlock()
	present, err := p.peers.read(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range sortedPeers(present) {
		if err := p.tell(ctx, e); err != nil {
			p.log.Warn("peer could not be told that we leave", "peer", e.Name, "err", err)
			unreachable = append(unreachable, e.Name)
			if !force {
				continue
			}
		}
		if err := p.forget(ctx, e.Name); err != nil {
			return left, unreachable, err
		}
		left = append(left, e.Name)
	}
	return left, unreachable, nil
}

// RemovePeer takes one peer out, and this cluster out of the peer. It works
// with a dead peer too, with force; told says whether the peer knows.
func (p *Port) RemovePeer(ctx context.Context, cluster string, force bool) (told bool, warning string, err error) {
	p.joinMu.Lock()
	defer p.joinMu.Unlock()
	const what = "remove refused"
	if err := clustermesh.ValidateClusterName(cluster); err != nil {
		return false, "", Refuse(codes.InvalidArgument, what, "name a peer, as `tombolo mesh list` shows them", "%v", err)
	}
	present, err := p.peers.read(ctx)
	if err != nil && !force {
		return false, "", err
	}
	e, ok := present[cluster]
	if err == nil && !ok {
		return false, "", Refuse(codes.NotFound, what, "see `tombolo mesh list`", "cluster %s is no peer of cluster %s", cluster, p.own)
	}
	if ok {
		if err := p.tell(ctx, e.peer); err == nil {
			told = true
		} else if !force {
			return false, "", Refuse(codes.Unavailable, what, "repair the connection, or use --force and run on the other side: tombolo mesh remove "+p.own+" --force",
				"cluster %s could not be told: %v", cluster, err)
		} else {
			warning = fmt.Sprintf("cluster %s could not be told (%v); if it still exists, run there: tombolo mesh remove %s --force", cluster, err, p.own)
		}
	}
	return told, warning, p.forget(ctx, cluster)
}

func sortedPeers(present map[string]peerEntry) []*clustermesh.Peer {
	out := make([]*clustermesh.Peer, 0, len(present))
	for _, name := range slices.Sorted(maps.Keys(present)) {
		out = append(out, present[name].peer)
	}
	return out
}

// tell asks the peer to forget this cluster.
func (p *Port) tell(ctx context.Context, peer *clustermesh.Peer) error {
	return p.undo(ctx, peer.Name, peer.MeshAddresses, peer.CABundle)
}

// forget leaves nothing of a peer behind.
func (p *Port) forget(ctx context.Context, cluster string) error {
	if err := p.tokens.revoke(ctx, cluster); err != nil {
		return fmt.Errorf("peer %s not removed: its token could not be taken away: %w", cluster, err)
	}
	if err := p.peers.Delete(ctx, cluster); err != nil {
		return fmt.Errorf("peer %s not removed: %w", cluster, err)
	}
	if err := p.forgetIntroduction(ctx, cluster); err != nil {
		return err
	}
	p.log.Info("peer removed", "cluster", cluster)
	return nil
}
