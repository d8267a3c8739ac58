package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// gossipKeys keeps what the agents of this cluster encrypt their gossip by. The
// leading replica makes and turns the keys over; any replica hands them out, in
// the answer to a registration, which goes to nothing but a verified node of
// this cluster.
//
// They are kept in the cluster's store, under private/: all replicas share it, a
// restart finds them there, the copy of the last good store brings them back, and
// the mesh port serves that scope to nobody, neither nodes nor peers.
type gossipKeys struct {
	cluster string
	period  time.Duration // of the rotation; 0 = none
	core    *core
	store   kvstore.Store
	cache   kvstore.Store // what others see; may be behind the store
	ready   func() bool   // the store holds all it should
}

func (g *gossipKeys) key() string { return privateKey(g.cluster, "gossip", "keys") }

// again is how soon nodes should ask again: a fraction of the period, so that
// three steps fit into it.
func (g *gossipKeys) again() time.Duration {
	if g.period == 0 {
		return 0
	}
	return max(g.period/10, time.Second)
}

// hand is PortConfig.GossipKeys; no keys while there are none yet.
func (g *gossipKeys) hand(ctx context.Context) ([][]byte, time.Duration, error) {
	keys, _, err := g.read(ctx, g.cache)
	secrets := gossipSecrets(keys)
	if len(secrets) == 0 {
		return nil, time.Second, err // they are about to be made
	}
	return secrets, g.again(), err
}

func (g *gossipKeys) read(ctx context.Context, from kvstore.Store) (*pb.GossipKeys, int64, error) {
	kv, err := getKey(ctx, from, g.key())
	if err != nil {
		return nil, 0, fmt.Errorf("gossip keys: %w", err)
	}
	keys := new(pb.GossipKeys)
	if kv.Key != "" {
		if err := keys.UnmarshalVT(kv.Value); err != nil {
			return nil, kv.ModRevision, fmt.Errorf("gossip keys: %w", err)
		}
	}
	return keys, kv.ModRevision, nil
}

// gossipLook is how often the leader looks whether a step is due.
const gossipLook = 10 * time.Second

// run turns the keys over while this replica leads.
func (g *gossipKeys) run(ctx context.Context, f *fence) error {
	every := gossipLook
	if g.period > 0 {
		every = min(every, max(g.period/50, 100*time.Millisecond))
	}
	for ctx.Err() == nil {
		wait := every
		if !g.ready() {
			wait = min(wait, 100*time.Millisecond) // what was lost with a store is being put back
		} else if err := g.turn(ctx, f); err != nil && ctx.Err() == nil && !errors.Is(err, kvstore.ErrConflict) {
			return err
		}
		pause(ctx, wait)
	}
	return nil
}

// turn takes one step if it is due.
func (g *gossipKeys) turn(ctx context.Context, f *fence) error {
	keys, rev, err := g.read(ctx, g.store)
	if err != nil && rev == 0 {
		return err
	} // a record that cannot be read is replaced: keys are made anew at no cost
	held := map[string][]uint64{}
	if err := g.core.ask(ctx, func() {
		for name, claim := range g.core.d.nodeClaims {
			if g.core.d.nodes[name] != nil {
				held[name] = claim.gossipKeys
			}
		}
	}); err != nil {
		return err
	}
	next, changed := turnGossipKeys(keys, held, g.period, time.Now(), freshGossipKey)
	if !changed {
		return nil
	}
	value, err := next.MarshalVT()
	if err != nil {
		return err
	}
	ops, err := f.ops()
	if err != nil {
		return err
	}
	_, err = g.store.Commit(ctx, append(ops, kvstore.IfModRevision(g.key(), rev), kvstore.Put(g.key(), value, 0))...)
	if err == nil {
		g.core.log.Info("gossip keys turned", "keys", len(next.Keys), "encrypt by", fmt.Sprintf("%016x", gossipKeyID(next.Keys[0].Secret)))
	}
	return err
}
