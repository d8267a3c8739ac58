package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
)

// Outsider is a machine on a cluster's L2 that belongs to no cluster: the world,
// as nodes see it. It knows no pod and no service address but by the routes that
// it is given.
type Outsider struct {
	Name      string
	Addresses []netip.Addr // IPv4, then IPv6

	cluster *Cluster
	host    *host
}

// outsiders have these numbers on the L2, from the first; nodes are below.
const firstOutsider = 200

// AddOutsider makes a machine beside the cluster's nodes.
func (c *Cluster) AddOutsider(name string) (*Outsider, error) {
	h, err := makeHost(c.lab.netnsName(c.Name+"-x-"+name), filepath.Join(c.lab.cgroup, c.Name+"-outside", name))
	if err != nil {
		return nil, err
	}
	number := byte(firstOutsider + c.outsiders)
	c.outsiders++
	if err := c.plug(h, fmt.Sprintf("c%d-x%d", c.ID, number), number); err != nil {
		return nil, err
	}
	v4, v6 := underlayPrefixes(c.ID)
	return &Outsider{Name: name, Addresses: []netip.Addr{hostAddr(v4, number), hostAddr(v6, number)}, cluster: c, host: h}, nil
}

// Exec starts a process on the machine.
func (o *Outsider) Exec(name string, stdout io.Writer, argv ...string) (*Process, error) {
	return o.host.start(o.cluster.Dir, o.Name+"-"+name, nil, stdout, argv...)
}

// Run runs a command on the machine to its end.
func (o *Outsider) Run(ctx context.Context, argv ...string) (string, error) {
	return o.host.run(ctx, nil, "", argv...)
}

// Dial opens a TCP or UDP connection from the machine to a literal address.
func (o *Outsider) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return o.host.dial(ctx, network, addr)
}
