package main

import (
	"context"
	"time"
)

// uplinksAgain is how often the programs of the uplinks are looked after: a
// device that was made anew has none.
const uplinksAgain = 10 * time.Second

// watchUplinks keeps the programs on the uplinks that judge what the world sends
// and what leaves in clear.
func (n *node) watchUplinks(ctx context.Context) {
	tick := time.NewTicker(uplinksAgain)
	defer tick.Stop()
	for {
		n.attachUplinks()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// attachUplinks does it once. A failure is said when it begins and when it ends:
// what was attached before stays at work.
func (n *node) attachUplinks() {
	links, err := uplinkIndexes(n.o.uplinks, n.underlay.Links)
	if err == nil {
		err = n.objects.SetUnderlay(n.underlay.First)
	}
	if err == nil {
		for _, index := range links {
			if err = n.objects.AttachHost(index); err != nil {
				break
			}
		}
	}
	n.mu.Lock()
	was := n.uplinkErr
	n.uplinkErr = err
	n.mu.Unlock()
	switch {
	case err != nil && was == nil:
		n.log.Error("an uplink has no program: node ports and masquerading do not work there, and nothing guards what leaves by it", "err", err)
	case err == nil && was != nil:
		n.log.Info("the uplinks have their programs")
	}
}
