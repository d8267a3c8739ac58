package lab

import (
	"context"
	"errors"
)

// PowerOff cuts the power of a node: its link is down, every process of it is
// killed, and what the kernel held is gone. What is on disk stays.
func (n *Node) PowerOff() error {
	return errors.Join(n.cluster.setPort(n.port(), false), killCgroup(n.host.cgroup), n.forget())
}

// PowerOn boots the node again, waits until its agent is ready, and starts the
// pods that were there, with the same UIDs.
func (n *Node) PowerOn(ctx context.Context) error {
	if err := n.make(); err != nil {
		return err
	}
	if err := n.Start(ctx); err != nil {
		return err
	}
	return n.BootPods(ctx)
}

// Boot is PowerOn of a node without its pods, and does not wait: with no control
// plane in reach no agent becomes ready.
func (n *Node) Boot(ctx context.Context) error {
	if err := n.make(); err != nil {
		return err
	}
	if err := n.StartTunnel(); err != nil {
		return err
	}
	return n.LaunchAgent(ctx)
}

// BootPods starts the pods that were on the node, with the same UIDs.
func (n *Node) BootPods(ctx context.Context) error {
	for _, p := range n.pods {
		if err := p.boot(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Unplug pulls the node's cable: it goes on, and nobody hears of it.
func (n *Node) Unplug() error { return n.cluster.setPort(n.port(), false) }

// Plug puts the node's cable back.
func (n *Node) Plug() error { return n.cluster.setPort(n.port(), true) }

// Unplug pulls the cables of all machines of the cluster, the mesh API server's
// among them.
func (c *Cluster) Unplug() error { return c.setPorts(false) }

// Plug puts them back.
func (c *Cluster) Plug() error { return c.setPorts(true) }

func (c *Cluster) setPorts(up bool) error {
	errs := []error{c.setPort(c.controlPort(), up)}
	for _, n := range c.Nodes {
		errs = append(errs, c.setPort(n.port(), up))
	}
	return errors.Join(errs...)
}
