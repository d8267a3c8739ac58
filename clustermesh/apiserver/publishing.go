package apiserver

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Publishing is a mesh API server without its mesh port and its admin socket:
// everything between the source and the store, and the watch cache. It is what
// simulations run, which have no network; Run has the same parts.
type Publishing struct {
	server *server
	state  *stateDir
}

// OpenPublishing opens the state directory and the store of cfg. Listen and Socket
// are not used, but must be set: the cluster's record tells where it listens.
func OpenPublishing(ctx context.Context, cfg Config) (*Publishing, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	state, err := openState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	handle, err := cfg.Open(ctx)
	if err != nil {
		state.close()
		return nil, err
	}
	return &Publishing{newPublishing(cfg, state, handle), state}, nil
}

// Run publishes until ctx ends, and returns nil, or until a part fails. It may be
// called once; nothing can be read afterwards.
func (p *Publishing) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var parts sync.WaitGroup
	p.server.startPublishing(func(name string, run func(context.Context) error) {
		parts.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				stop(fmt.Errorf("%s: %w", name, err))
			}
		})
	})
	<-ctx.Done()
	parts.Wait()
	p.server.cache.Close()
	p.server.memory.save()
	if p.server.handle.Close != nil {
		p.server.handle.Close()
	}
	p.state.close()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Cache is what the mesh port serves from.
func (p *Publishing) Cache() *kvstore.Memory { return p.server.cache }

// Registrar takes registrations, as the mesh port does.
func (p *Publishing) Registrar() Registrar { return p.server.registry }

// Replica is how this server signs the leader key.
func (p *Publishing) Replica() string { return p.server.leader.cfg.Holder }

// LeaderKey is the key whose holder alone may publish.
func (p *Publishing) LeaderKey() string { return p.server.leader.cfg.Key }

// Problems are what an operator would be shown.
func (p *Publishing) Problems() []Problem { return p.server.problems.All() }
