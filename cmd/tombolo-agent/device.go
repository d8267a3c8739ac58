package main

import (
	"context"
	"errors"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
)

// kicked asks watchTunnel to look at the device.
func (n *node) kicked() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// watchTunnel keeps the device configured and the program attached, through
// deaths of the tunnel process. While it is away, the blackholes hold.
func (n *node) watchTunnel(ctx context.Context) {
	const usual, first = 10 * time.Second, 50 * time.Millisecond
	wait := first
	for moved := false; ; {
		if n.tunnel() {
			wait = usual
			if a := n.running(); a != nil && moved {
				// A device that was down for a moment has lost its routes.
				a.Notify(agent.TableRoutes)
			}
		} else if wait = min(wait*2, 2*time.Second); wait < first {
			wait = first
		}
		moved = false
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-n.kick:
			wait, moved = first, true
		}
		timer.Stop()
	}
}

// tunnel does it once and reports whether the device is usable. It is called
// from one goroutine at a time.
func (n *node) tunnel() bool {
	n.mu.Lock()
	old := n.state
	n.mu.Unlock()
	st, err := n.device.Ensure(linux.PodMTU(n.underlay.MTU), func(index int) error {
		return n.guard(index, old.Present && old.IfIndex == index)
	})
	if err != nil {
		st.Present = false
		if old.Present || old.Detail == "" {
			n.log.Error("no tunnel to other nodes; traffic to them is dropped, never sent in clear", "err", err)
		} else if !errors.Is(err, linux.ErrNoTunnel) {
			n.log.Warn("tunnel device", "err", err)
		}
		st.Detail = err.Error()
		if a := n.running(); a != nil && old.Present {
			a.Notify(agent.TablePeers) // what was lost shows as a problem until it is back
			a.Notify(agent.TableRoutes)
		}
	} else if !old.Present || st.IfIndex != old.IfIndex {
		n.log.Info("tunnel device is ready", "device", n.device.Name(), "index", st.IfIndex, "mtu", st.MTU, "kind", st.Detail)
		if a := n.running(); a != nil {
			a.Notify(agent.TablePeers)
			a.Notify(agent.TableRoutes)
		}
	}
	n.mu.Lock()
	n.state = st
	n.mu.Unlock()
	return err == nil
}

// guard puts the tunnel's program on the device, or finds it there. was says that
// it has been there: then a first failure may be a bad moment of the kernel, and
// is no reason to take a tunnel down that works. A second in a row is one.
func (n *node) guard(index int, was bool) error {
	err := n.objects.AttachTunnel(index)
	if err == nil {
		n.doubt = false
		return nil
	}
	if was && !n.doubt {
		n.doubt = true
		n.log.Warn("cannot make sure that the tunnel's program is on its device; the device goes down if that stays so", "err", err)
		return nil
	}
	return err
}
