package main

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/agent/register"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// watchPods runs readiness probes and reports pods to the cluster. It begins when
// the cluster has said which pods have probes: a pod must not be called ready
// because nobody knew of its probe.
func (n *node) watchPods(ctx context.Context, a *agent.Agent) {
	probes := linux.NewReadiness(ctx, n.pods)
	var wg sync.WaitGroup
	reporting := false
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		if list, known, err := a.Workloads(ctx); err == nil && known {
			wanted := map[string]clustermesh.Probe{}
			for _, w := range list {
				if w.Readiness != nil && w.Owner != "" {
					wanted[w.Owner] = *w.Readiness
				}
			}
			probes.Update(wanted)
			if !reporting {
				reporting = true
				wg.Go(func() { n.pods.Report(ctx, n.report) })
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	wg.Wait()
	probes.Wait()
}

// sweepEvery is how often is looked for pods that are gone without a word.
const sweepEvery = 15 * time.Second

// tellHostAddresses says which addresses the host has of the other CNI's links.
func (n *node) tellHostAddresses(a *agent.Agent) {
	if !n.o.cni.chained() {
		return
	}
	n.mu.Lock()
	known := slices.Concat(n.underlay.Addresses, n.facts.TunnelAddresses)
	n.mu.Unlock()
	addrs, err := linux.HostAddresses(known)
	if err != nil {
		n.log.Error("the host's addresses cannot be read: policy may take its probes for others'", "err", err, "retry", sweepEvery)
		return
	}
	a.SetHostAddresses(addrs)
}

// deletions is where the plugin leaves notes for an agent that is away.
func (o options) deletions() string { return filepath.Join(o.stateDir, "deletions") }

// sweepPods carries out deletions that the plugin noted, and frees what pods that
// are gone have left behind, until ctx ends. The first round is at once; later ones
// also find notes of a plugin that gave up on us in the moment in which we came up.
func (n *node) sweepPods(ctx context.Context, a *agent.Agent) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := n.pods.CarryOut(n.o.deletions()); err != nil {
			n.log.Error("deletions of pods that came while no agent was there are not all carried out", "err", err, "retry", sweepEvery)
		}
		n.tellHostAddresses(a)
		if err := n.pods.Sweep(listed(ctx, a)); err != nil {
			n.log.Error("pods that are gone were not all cleared away", "err", err, "retry", sweepEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// listed is what the cluster says of the pods on this node; nil = nothing that
// would speak against a pod. A static pod's mirror has another UID than its sandbox,
// so a name does as well.
func listed(ctx context.Context, a *agent.Agent) func(linux.PodName) bool {
	list, live, err := a.LiveWorkloads(ctx)
	if err != nil || !live {
		return nil
	}
	uids, names := map[string]bool{}, map[linux.PodName]bool{}
	for _, w := range list {
		uids[w.Owner] = true
		names[linux.PodName{Namespace: w.Namespace, Name: w.Name}] = true
	}
	return func(p linux.PodName) bool {
		return uids[p.UID] || names[linux.PodName{Namespace: p.Namespace, Name: p.Name}]
	}
}

func (n *node) report(ctx context.Context, r linux.EndpointReport) (clustermesh.Identity, error) {
	return n.client.RegisterEndpoint(ctx, register.Endpoint{Namespace: r.Namespace, Name: r.Name, Owner: r.UID, Addresses: r.Addresses, Ready: r.Ready, Remove: r.Remove})
}
