package linux

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// watchAgain is the pause before the kernel is asked anew for its changes.
const watchAgain = 100 * time.Millisecond

// lostPause bounds how often WatchRoutes calls.
const lostPause = 50 * time.Millisecond

// WatchLinks calls changed after each change of the device of that name (made,
// deleted, up, down) in the calling thread's network namespace, until ctx ends.
// When more devices change at once than the kernel keeps for us (hundreds of
// pods start), it begins anew and calls changed, as something may be missed.
func WatchLinks(ctx context.Context, device string, changed func()) error {
	return watch(ctx, "devices", changed, func(ctx context.Context, ns netns.NsHandle) error {
		updates := make(chan netlink.LinkUpdate, 64)
		if err := netlink.LinkSubscribeAt(ns, updates, ctx.Done()); err != nil {
			return err
		}
		for u := range updates {
			if u.Link.Attrs().Name == device {
				changed()
			}
		}
		return nil
	})
}

// WatchRoutes calls lost after a route of ours to another node, or the blackhole
// that guards it, was deleted in the calling thread's network namespace, until
// ctx ends: whoever flushes routes (network managers do, on a reload) opens a way
// in clear, which is to be closed at once. Our own deletions are told as well, and
// of thousands in a row the first and then what came within lostPause of it.
func WatchRoutes(ctx context.Context, lost func()) error {
	return watch(ctx, "routes", lost, func(ctx context.Context, ns netns.NsHandle) error {
		updates := make(chan netlink.RouteUpdate, 64)
		if err := netlink.RouteSubscribeAt(ns, updates, ctx.Done()); err != nil {
			return err
		}
		first, rest := time.Time{}, atomic.Bool{}
		for u := range updates {
			kind := uint32(u.Priority)
			if u.Type != unix.RTM_DELROUTE || u.Protocol != RouteProtocol || kind != metricBlackhole && kind != metricTunnel {
				continue
			}
			if time.Since(first) > lostPause {
				first = time.Now()
				lost()
			} else if !rest.Swap(true) {
				time.AfterFunc(lostPause, func() { rest.Store(false); lost() })
			}
		}
		return nil
	})
}

// watch runs listen, which returns when the kernel has dropped a change, again
// and again; changed is called for what may be missed.
func watch(ctx context.Context, what string, changed func(), listen func(context.Context, netns.NsHandle) error) error {
	ns, err := currentNetns()
	if err != nil {
		return fmt.Errorf("watch %s: %w", what, err)
	}
	defer ns.Close()
	for {
		once, cancel := context.WithCancel(ctx)
		err := listen(once, netns.NsHandle(ns.Fd()))
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchAgain):
			changed()
		}
	}
}
