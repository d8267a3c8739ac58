package linux

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// expire ends pods that have been without a link for too long.
func (p *Pods) expire(now time.Time) {
	for uid, r := range p.pods {
		if !r.Gone.IsZero() && now.Sub(r.Gone) >= goneFor {
			p.log.Warn("pod without a link was not added again: its addresses are free", "uid", uid, "addresses", r.Addresses, "after", goneFor)
			p.forget(r, now)
		}
	}
}

// forget drops a record; the cluster is told by Report.
func (p *Pods) forget(r *pod, now time.Time) {
	delete(p.pods, r.UID)
	delete(p.index, r.UID)
	delete(p.unlisted, r.UID)
	delete(p.unready, r.UID)
	p.release(r, now)
	if r.Name == "" {
		return // never reported
	}
	if len(p.departed) >= mostDeparted {
		p.departed = slices.Delete(p.departed, 0, 1)
	}
	p.departed = append(p.departed, departed{UID: r.UID, Namespace: r.Namespace, Name: r.Name, Addresses: r.Addresses})
}

func (p *Pods) release(r *pod, now time.Time) {
	if r.chained() {
		return // they are not ours to give
	}
	for _, a := range r.Addresses {
		if i := p.poolOf(a); i >= 0 {
			p.pools[i].release(a, r.UID, now)
		} else {
			p.freed = append(p.freed, freedAddress{Address: a, Owner: r.UID, At: now})
		}
	}
}

// Del disconnects a pod. It succeeds for a pod that is unknown or half gone, and
// changes nothing for a sandbox that a later Add has replaced.
func (p *Pods) Del(ctx context.Context, r agent.PodRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.del(r)
}

func (p *Pods) del(r agent.PodRequest) error {
	rec := p.find(r)
	if rec == nil {
		return nil
	}
	if r.ContainerID != "" && rec.ContainerID != "" && r.ContainerID != rec.ContainerID {
		p.log.Debug("DEL of a former sandbox ignored", "uid", rec.UID, "container", r.ContainerID, "present", rec.ContainerID)
		return nil
	}
	if r.IfName != "" && rec.ContainerID != "" && r.IfName != rec.IfName {
		p.log.Debug("DEL of an interface that is not ours ignored", "uid", rec.UID, "interface", r.IfName, "ours", rec.IfName)
		return nil
	}
	return p.end(rec, "pod disconnected")
}

// end takes a pod's link away and forgets the pod.
func (p *Pods) end(rec *pod, why string) error {
	if err := p.link(rec).disconnect(p.nl); err != nil {
		return err
	}
	p.forget(rec, p.cfg.Now())
	if err := p.save(); err != nil {
		return err
	}
	p.log.Info(why, "namespace", rec.Namespace, "name", rec.Name, "uid", rec.UID, "addresses", rec.Addresses)
	p.announce()
	return nil
}

// find looks a pod up by UID, or by container if the runtime does not say.
func (p *Pods) find(r agent.PodRequest) *pod {
	if r.UID != "" {
		return p.pods[r.UID]
	}
	for _, rec := range p.pods {
		if r.ContainerID != "" && rec.ContainerID == r.ContainerID {
			return rec
		}
	}
	return nil
}

// Check compares the kernel with what Add made.
func (p *Pods) Check(ctx context.Context, r agent.PodRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	rec := p.find(r)
	if rec == nil {
		return fmt.Errorf("pod %s/%s (%s) is not known on this node: add it", r.Namespace, r.Name, r.UID)
	}
	if r.ContainerID != "" && rec.ContainerID != r.ContainerID {
		return fmt.Errorf("pod %s/%s has a newer sandbox (%s): this one is not connected", rec.Namespace, rec.Name, rec.ContainerID)
	}
	if r.IfName != "" && r.IfName != rec.IfName {
		return fmt.Errorf("pod %s/%s is connected by %s, not by %s", rec.Namespace, rec.Name, rec.IfName, r.IfName)
	}
	path := r.Netns
	if path == "" {
		path = rec.Netns
	}
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()
	if err := p.link(rec).check(p.nl, ns); err != nil {
		return fmt.Errorf("pod %s/%s is not connected as it should be: %w; delete and add it", rec.Namespace, rec.Name, err)
	}
	return nil
}
