package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
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
	if links != nil {
		n.attachXDP(links)
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

// attachXDP gives those of the uplinks their XDP program for which it was asked,
// and takes it off all others. Nothing depends on it: a failure is said, no more.
func (n *node) attachXDP(uplinks []int) {
	var errs []error
	wanted := make(map[int]bool)
	for name, generic := range n.o.xdpModes {
		dev, err := net.InterfaceByName(name)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("--xdp %s: this node has no such device", name))
		case !slices.Contains(uplinks, dev.Index):
			errs = append(errs, fmt.Errorf("--xdp %s: it is no uplink, see --uplink", name))
		default:
			wanted[dev.Index] = true
			errs = append(errs, n.objects.AttachXDP(dev.Index, generic))
		}
	}
	attached, err := n.objects.AttachedXDPs()
	errs = append(errs, err)
	for _, index := range attached {
		if !wanted[index] {
			errs = append(errs, n.objects.DetachXDP(index))
		}
	}
	err = errors.Join(errs...)
	n.mu.Lock()
	was := n.xdpErr
	n.xdpErr = err
	n.mu.Unlock()
	switch {
	case err != nil && was == nil:
		n.log.Warn("XDP is not as --xdp says; node ports work without it", "err", err)
	case err == nil && was != nil:
		n.log.Info("XDP is as --xdp says")
	}
}
