package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Part is further work beside publishing and serving: what Kubernetes needs of a
// mesh API server is made of parts, so that this package needs no clients of it.
type Part struct {
	Name string
	// Leading: it runs on the replica that leads alone, otherwise on each. Its
	// context ends when the lease is lost or may be over, and this replica gives
	// the leader key up once Run has returned, so that of all replicas one writes.
	Leading bool
	// Run works until ctx ends. One that returns earlier is a problem, and is run
	// again after a while.
	Run func(ctx context.Context, on *Running) error
}

// Running is what a part sees of the server it runs in.
type Running struct {
	Cluster string
	ID      clustermesh.ID
	Version string
	// Records is the watch cache, for List and Watch: this cluster's records, and
	// what else the store holds. It is shown once CacheReady is closed.
	Records    kvstore.Store
	CacheReady <-chan struct{}
	// Exports are the exported services of the mesh; nil without Config.Multicluster.
	Exports *Exports
	// Problems takes what an operator should know; a part uses areas that begin
	// with its name.
	Problems *Problems
	// Admin are the admin calls, within the process.
	Admin *Admin
	// MeshPeers takes what became of the resources that ask for peers, for the status;
	// nil = nobody looks after them here.
	MeshPeers func([]*pb.MeshPeerStatus)
	// Bundle is the CA bundle to announce, PEM; it changes when a CA rolls over.
	Bundle func() []byte
	Log    *slog.Logger
}

func (s *server) running() *Running {
	return &Running{
		Cluster: s.cfg.Cluster, ID: s.cfg.ID, Version: s.cfg.Version, Records: s.cache, CacheReady: s.cache.Ready(),
		Exports: s.exports, Problems: s.problems, Admin: s.admin, MeshPeers: func(list []*pb.MeshPeerStatus) { s.meshPeers.Store(&list) }, Bundle: s.bundle, Log: s.log,
	}
}

// beside runs a term, and the leading parts, its own and the configured ones, as long as it lasts.
func (s *server) beside(ctx context.Context, term func(context.Context) error, own ...Part) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	on := s.running()
	for _, p := range append(own, s.cfg.Parts...) {
		if p.Leading {
			parts.Go(func() { p.keep(ctx, on) })
		}
	}
	return term(ctx)
}

const (
	partAgain     = time.Second
	partAgainMost = 30 * time.Second
)

// keep runs a part until ctx ends.
func (p *Part) keep(ctx context.Context, on *Running) {
	area := "part " + p.Name
	defer on.Problems.Set(area, nil)
	for wait := partAgain; ctx.Err() == nil; wait = min(2*wait, partAgainMost) {
		began := time.Now()
		running := time.AfterFunc(partAgain, func() { on.Problems.Set(area, nil) })
		err := p.Run(ctx, on)
		running.Stop()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = fmt.Errorf("it ended")
		}
		on.Problems.Set(area, []Problem{{
			Object: p.Name, What: "does not run", Why: printable(err.Error()), Fix: "it is started again by itself; see the log",
		}})
		if time.Since(began) > partAgainMost {
			wait = partAgain
		}
		pause(ctx, wait)
	}
}
