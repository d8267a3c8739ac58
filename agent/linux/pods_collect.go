package linux

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Collect is CNI's GC: what this node has of r.Network and r.Valid does not list is
// disconnected, and links of ours that no record knows. A pod of another network
// stays, and so does one whose sandbox is not known (it was learned from its
// device): Sweep ends that. A pod that comes back, after its node's restart, gets
// its addresses back as their last owner.
func (p *Pods) Collect(ctx context.Context, r agent.CollectRequest) error {
	if r.Network == "" {
		return errors.New("no network named: everything of a network that is not listed would be taken away")
	}
	valid := make(map[agent.Attachment]bool, len(r.Valid))
	for _, a := range r.Valid {
		valid[a] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, rec := range p.pods {
		if rec.Network != r.Network || rec.ContainerID == "" || valid[agent.Attachment{ContainerID: rec.ContainerID, IfName: rec.IfName}] {
			continue
		}
		errs = append(errs, p.end(rec, "pod collected: its runtime does not know it any more"))
	}
	return errors.Join(append(errs, p.collectLinks())...)
}

// collectLinks deletes pods' devices of ours without a record.
func (p *Pods) collectLinks() error {
	links, err := p.nl.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, link := range links {
		uid, _, ok := podFromAlias(link.Attrs().Alias)
		if !ok || link.Attrs().Name != hostIfName(uid) || p.pods[uid] != nil {
			continue
		}
		p.log.Warn("device of a pod that is not known deleted", "device", link.Attrs().Name, "uid", uid)
		errs = append(errs, podLink{HostIf: link.Attrs().Name}.disconnect(p.nl))
	}
	return errors.Join(errs...)
}

// PodName is a pod as the cluster names it.
type PodName struct{ UID, Namespace, Name string }

// Sweep ends what nobody deletes: runtimes lose sandboxes, and older ones have no
// GC. listed says whether the cluster has a pod on this node; nil = it is not known
// now, which says nothing of any pod.
//
// A pod without a link keeps its addresses for goneFor (its node was restarted, or
// its sandbox is made anew), unless the cluster has it no more. One that has its
// link is ended when the cluster has had it no more for goneFor: its runtime, who
// has to end its processes first, is done long before.
func (p *Pods) Sweep(listed func(PodName) bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost, err := p.lostLinks()
	if err != nil {
		return err
	}
	now, noted := p.cfg.Now(), lost
	var errs []error
	for uid, rec := range p.pods {
		if listed != nil {
			noted = p.noteListed(rec, listed(PodName{uid, rec.Namespace, rec.Name}), now) || noted
		}
		since, unlisted := p.unlisted[uid]
		switch {
		case !rec.Gone.IsZero() && rec.chained():
			errs = append(errs, p.end(rec, "pod of another CNI has no link any more: its addresses are anybody's"))
		case !rec.Gone.IsZero() && unlisted:
			errs = append(errs, p.end(rec, "pod without a link has left the cluster: its addresses are free"))
		case !rec.Gone.IsZero() && now.Sub(rec.Gone) >= goneFor:
			errs = append(errs, p.end(rec, "pod without a link was not added again: its addresses are free"))
		case unlisted && now.Sub(since) >= goneFor:
			errs = append(errs, p.end(rec, "pod that left the cluster long ago was not deleted by its runtime: disconnected"))
		}
	}
	if noted {
		errs = append(errs, p.save())
	}
	if lost {
		p.announce()
	}
	return errors.Join(errs...)
}

// noteListed keeps what the cluster says of a pod; true = the record changed.
func (p *Pods) noteListed(rec *pod, listed bool, now time.Time) bool {
	switch {
	case listed:
		delete(p.unlisted, rec.UID)
		had := rec.Listed
		rec.Listed = true
		return !had
	case rec.Listed && p.unlisted[rec.UID].IsZero():
		p.unlisted[rec.UID] = now
	}
	return false
}

// lostLinks marks pods whose device went, with its namespace or by somebody's
// hand, and reports whether there are any.
func (p *Pods) lostLinks() (bool, error) {
	links, err := p.nl.LinkList()
	if err != nil {
		return false, fmt.Errorf("list devices: %w", err)
	}
	there := make(map[uint32]netlink.Link, len(links))
	for _, link := range links {
		there[uint32(link.Attrs().Index)] = link
	}
	lost := false
	for uid, index := range p.index {
		rec := p.pods[uid]
		if link := there[index]; link != nil && link.Attrs().Name == p.link(rec).HostIf {
			continue
		}
		p.log.Warn("pod's link is gone without a DEL: its addresses are kept for it", "namespace", rec.Namespace, "name", rec.Name, "uid", uid, "for", goneFor)
		delete(p.index, uid)
		rec.Gone, lost = p.cfg.Now(), true
	}
	return lost, nil
}
