package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// MeshPort is the TCP port of every mesh API server in the lab.
const MeshPort = 32379

// Cluster is one cluster of the lab: a control host and nodes.
type Cluster struct {
	Name      string
	ID        int
	Dir       string // of this cluster
	Manifests string // the folder its mesh API server reads
	Nodes     []*Node

	lab       *Lab
	control   *host
	apiserver *Process
	admin     *grpc.ClientConn
	extra     []string // further flags of the mesh API server
	outsiders int      // machines beside the nodes

	chain func(*Pod) Object // see Chain; nil = Tombolo connects the pods
}

// AddCluster makes the hosts of a cluster and its manifests; nothing runs yet.
func (l *Lab) AddCluster(name string, nodes int) (*Cluster, error) {
	id := len(l.clusters) + 1
	dir := filepath.Join(l.Dir, name)
	c := &Cluster{Name: name, ID: id, Dir: dir, Manifests: filepath.Join(dir, "manifests"), lab: l}
	for _, d := range []string{c.Manifests, filepath.Join(dir, "control")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	if err := c.makeBridge(); err != nil {
		return nil, err
	}
	if err := c.makeControl(); err != nil {
		return nil, err
	}
	if err := c.Apply("namespace-default", Manifest(Namespace("default"))); err != nil {
		return nil, err
	}
	for n := 1; n <= nodes; n++ {
		node, err := c.addNode(n)
		if err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, node)
	}
	l.clusters = append(l.clusters, c)
	return c, nil
}

func (c *Cluster) controlPort() string { return fmt.Sprintf("c%d-cp", c.ID) }

func (c *Cluster) makeControl() (err error) {
	c.control, err = makeHost(c.lab.netnsName(c.Name+"-cp"), filepath.Join(c.lab.cgroup, c.Name, "cp"))
	if err != nil {
		return err
	}
	return c.plug(c.control, c.controlPort(), 250)
}

// MeshAddress is where the cluster's mesh port listens and is advertised.
func (c *Cluster) MeshAddress() string {
	v4, _ := underlayPrefixes(c.ID)
	return netip.AddrPortFrom(hostAddr(v4, 250), MeshPort).String()
}

// AdminSocket of the cluster's mesh API server.
func (c *Cluster) AdminSocket() string { return filepath.Join(c.Dir, "control", "admin.sock") }

// StateDir of the cluster's mesh API server: CA, embedded etcd.
func (c *Cluster) StateDir() string { return filepath.Join(c.Dir, "control", "state") }

// Start brings the mesh API server up, then all nodes at once, and waits until
// every agent is ready.
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.StartControlPlane(ctx); err != nil {
		return err
	}
	return c.startNodes(ctx)
}

func (c *Cluster) startNodes(ctx context.Context) error {
	errs := make(chan error, len(c.Nodes))
	for _, n := range c.Nodes {
		go func() { errs <- n.Start(ctx) }()
	}
	var all []error
	for range c.Nodes {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// StartControlPlane starts the mesh API server with its embedded etcd.
func (c *Cluster) StartControlPlane(ctx context.Context, flags ...string) error {
	if len(flags) > 0 {
		c.extra = flags
	}
	args := append([]string{
		filepath.Join(c.lab.opts.BinDir, "tombolo-apiserver"),
		"--cluster", c.Name, "--cluster-id", fmt.Sprint(c.ID),
		"--state-dir", c.StateDir(), "--manifests", c.Manifests,
		"--listen", fmt.Sprintf("0.0.0.0:%d", MeshPort), "--advertise", c.MeshAddress(),
		"--socket", c.AdminSocket(),
	}, c.extra...)
	p, err := c.control.start(filepath.Join(c.Dir, "control"), "apiserver", nil, nil, args...)
	if err != nil {
		return err
	}
	c.apiserver = p
	return await(ctx, c.Name+": mesh API server ready", p, func() error {
		_, err := c.Status(ctx)
		return err
	})
}

// ControlExec starts another process on the cluster's control host, for labs
// that bring a mesh port of their own.
func (c *Cluster) ControlExec(name string, stdin io.Reader, stdout io.Writer, argv ...string) (*Process, error) {
	return c.control.start(filepath.Join(c.Dir, "control"), name, stdin, stdout, argv...)
}

// ControlPlane is the mesh API server's process.
func (c *Cluster) ControlPlane() *Process { return c.apiserver }

// KillControlPlane kills the mesh API server and the etcd inside it.
func (c *Cluster) KillControlPlane() { c.apiserver.Kill() }

// Admin is a client of the mesh API server's admin socket.
func (c *Cluster) Admin() (pb.AdminClient, error) {
	if c.admin == nil {
		conn, err := grpc.NewClient("unix://"+c.AdminSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
		if err != nil {
			return nil, err
		}
		c.admin = conn
		c.lab.closeLater(conn)
	}
	c.admin.ResetConnectBackoff()
	return pb.NewAdminClient(c.admin), nil
}

// Status asks the mesh API server.
func (c *Cluster) Status(ctx context.Context) (*pb.StatusResponse, error) {
	admin, err := c.Admin()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return admin.Status(ctx, &pb.StatusRequest{})
}

// Join makes c a member of the mesh that other is in, the way an operator does:
// invite on one side, join on the other.
func (c *Cluster) Join(ctx context.Context, other *Cluster) (*pb.InviteResponse, *pb.JoinMeshResponse, error) {
	inviter, err := other.Admin()
	if err != nil {
		return nil, nil, err
	}
	inv, err := inviter.Invite(ctx, &pb.InviteRequest{TtlSeconds: 600})
	if err != nil {
		return nil, nil, fmt.Errorf("invite on %s: %w", other.Name, err)
	}
	joiner, err := c.Admin()
	if err != nil {
		return nil, nil, err
	}
	res, err := joiner.JoinMesh(ctx, &pb.JoinMeshRequest{Token: inv.Token})
	if err != nil {
		return inv, nil, fmt.Errorf("join on %s: %w", c.Name, err)
	}
	return inv, res, nil
}

// PowerOff cuts the power of every machine of the cluster: links down, every
// process killed, kernel state gone. What is on disk stays.
func (c *Cluster) PowerOff() error {
	var errs []error
	errs = append(errs, c.Unplug(), killCgroup(filepath.Join(c.lab.cgroup, c.Name)))
	for _, n := range c.Nodes {
		errs = append(errs, n.forget())
	}
	errs = append(errs, c.unplug(c.controlPort()), c.control.delete())
	return errors.Join(errs...)
}

// PowerOn boots the cluster again: machines, mesh API server, agents, and the
// pods that were there, with the same UIDs.
func (c *Cluster) PowerOn(ctx context.Context) error {
	if err := c.makeControl(); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.make(); err != nil {
			return err
		}
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.BootPods(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Apply writes a manifest file the way `kubectl apply` would: atomically.
func (c *Cluster) Apply(name, yaml string) error {
	path := filepath.Join(c.Manifests, name+".yaml")
	tmp := filepath.Join(c.Dir, name+".tmp")
	if err := os.WriteFile(tmp, []byte(yaml), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Unapply removes a manifest file.
func (c *Cluster) Unapply(name string) error {
	return os.Remove(filepath.Join(c.Manifests, name+".yaml"))
}
