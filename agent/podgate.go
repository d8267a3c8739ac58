package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// podGate holds pods back until no packet of theirs can leave in clear: at the
// start there is a moment in which nothing says yet which prefixes are those of
// other clusters, and a pod connected then would reach them by the default route.
type podGate struct {
	agent *Agent
	open  atomic.Bool // once open, always open: from then on blackholes precede what they guard
}

// The runtime tries again after a refusal, so a call is not held for long.
const (
	gateWait  = 10 * time.Second
	gateAgain = 50 * time.Millisecond
	rowWait   = 2 * time.Second
)

var errPodNotYet = errors.New("pod not connected yet")

// add is Pods.Add behind the gate.
func (g *podGate) add(ctx context.Context, r PodRequest) (PodResult, error) {
	if err := g.wait(ctx); err != nil {
		return PodResult{}, fmt.Errorf("%w: %w; the runtime will try again", errPodNotYet, err)
	}
	result, err := g.agent.cfg.Pods.Add(ctx, r)
	if err == nil {
		g.waitRow(ctx, result)
	}
	return result, err
}

// PodsReady says why a pod could not be added now; nil = it could. What it asks is
// what Add waits for, and not whether every cluster is in reach: a node whose
// control plane is away goes on connecting pods.
func (a *Agent) PodsReady(ctx context.Context) error {
	if a.cfg.Pods == nil {
		return errors.New("this agent connects no pods")
	}
	if err := a.cfg.Pods.Ready(); err != nil {
		return err
	}
	if a.gate.open.Load() {
		return nil
	}
	var why error
	if err := a.call(ctx, func() { why = a.unguarded() }); err != nil {
		return err
	}
	return why
}

// waitRow gives the pod's rows a moment to get into the kernel, so that its first
// packets are not dropped for the lack of them: until then nothing passes.
func (g *podGate) waitRow(ctx context.Context, result PodResult) {
	ctx, cancel := context.WithTimeout(ctx, rowWait)
	defer cancel()
	for {
		missing := false
		if err := g.agent.call(ctx, func() { missing = g.agent.rowless(result) }); err != nil || !missing {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(gateAgain):
		}
	}
}

// rowless reports whether a pod that this node has lacks its row in the kernel.
func (a *Agent) rowless(result PodResult) bool {
	if a.pods.Load() != nil {
		return true // the list with the pod in it is not taken yet
	}
	for _, ip := range result.IPs {
		addr := ip.Address.Addr()
		if _, ours := a.state.podAddrs[addr]; !ours {
			continue
		}
		if _, there := a.state.t.endpoints.Actual(MakeAddr(addr)); !there {
			return true
		}
	}
	return false
}

func (g *podGate) wait(ctx context.Context) error {
	if g.open.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, gateWait)
	defer cancel()
	var why error
	for {
		var now error
		if err := g.agent.call(ctx, func() { now = g.agent.unguarded() }); err != nil {
			return cmp.Or(why, err)
		}
		if why = now; why == nil {
			g.open.Store(true)
			return nil
		}
		select {
		case <-ctx.Done():
			return why
		case <-time.After(gateAgain):
		}
	}
}

// unguarded says why packets to other clusters might leave in clear; nil = they
// cannot. Blackholes that an agent before this one left do as well.
func (a *Agent) unguarded() error {
	s, own := a.state, a.state.clusters[a.cfg.Cluster]
	if !s.t.routes.Scanned() {
		return errors.New("the routes of this node are not read yet")
	}
	for k := range s.t.routes.HeldRows() {
		if k.Kind == RouteBlackhole {
			return nil
		}
	}
	for _, scope := range own.scopes() {
		if own.views[scope] == nil {
			return fmt.Errorf("neither cluster %s nor a snapshot has said yet which pod prefixes belong to other clusters (see the agent's log)", own.name)
		}
	}
	if s.planDirty {
		return errors.New("the routes to other clusters are being computed")
	}
	waiting := 0
	for k, rows := range s.t.routes.pending() {
		if k.Kind == RouteBlackhole && rows[1] != nil {
			if _, there := s.t.routes.Actual(k); !there {
				waiting++
			}
		}
	}
	if waiting > 0 {
		return errors.Join(fmt.Errorf("%d blackhole routes to other clusters are not in the kernel", waiting), s.t.routes.Problem())
	}
	return nil
}
