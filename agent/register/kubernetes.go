package register

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// The files of a mesh configuration: on Kubernetes a ConfigMap that the mesh API
// server keeps, and that the kubelet brings to the node.
const (
	meshClusterFile   = "cluster"
	meshAddressesFile = "addresses" // host:port, one a line
	meshBundleFile    = "ca-bundle.pem"
)

// meshConfig is where the own cluster's mesh API servers are, and by what they
// are verified.
type meshConfig struct {
	cluster   string
	addresses []string
	bundle    []byte
}

// readMeshConfig reads the files of a folder.
func readMeshConfig(dir string) (m meshConfig, err error) {
	read := func(name string) []byte {
		text, e := os.ReadFile(filepath.Join(dir, name))
		if e != nil && err == nil {
			err = e
		}
		return text
	}
	m.cluster = strings.TrimSpace(string(read(meshClusterFile)))
	m.bundle = read(meshBundleFile)
	for line := range strings.Lines(string(read(meshAddressesFile))) {
		if line = strings.TrimSpace(line); line != "" {
			m.addresses = append(m.addresses, line)
		}
	}
	if err != nil {
		return m, fmt.Errorf("mesh configuration: %w; the mesh API server writes it when it runs for the first time", err)
	}
	return m, m.check(dir)
}

func (m meshConfig) check(dir string) error {
	if err := certs.CheckCluster(m.cluster); err != nil {
		return fmt.Errorf("mesh configuration %s/%s: %w", dir, meshClusterFile, err)
	}
	if len(m.addresses) == 0 {
		return fmt.Errorf("mesh configuration %s/%s names no address", dir, meshAddressesFile)
	}
	for _, a := range m.addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fmt.Errorf("mesh configuration %s/%s: %q is not host:port", dir, meshAddressesFile, a)
		}
	}
	if _, err := certs.ParseBundle(m.bundle); err != nil {
		return fmt.Errorf("mesh configuration %s/%s: %w", dir, meshBundleFile, err)
	}
	return nil
}

// followMesh reads the mesh configuration anew and goes by its addresses. One
// that is missing or malformed changes nothing: what is on disk keeps working.
func (c *Client) followMesh() {
	if c.cfg.MeshConfig == "" {
		return
	}
	m, err := readMeshConfig(c.cfg.MeshConfig)
	f, known := c.Facts()
	if !known {
		return
	}
	if err == nil && m.cluster != f.Cluster {
		err = fmt.Errorf("it is of cluster %s, this node belongs to %s", m.cluster, f.Cluster)
	}
	if err != nil {
		c.log.Warn("the mesh configuration is not used; the last good one is", "dir", c.cfg.MeshConfig, "err", err)
		return
	}
	if slices.Equal(m.addresses, f.MeshAddresses) {
		return
	}
	f.MeshAddresses = m.addresses
	if err := c.take(f); err != nil {
		c.log.Error("new addresses of the mesh API server not kept", "err", err)
		return
	}
	c.log.Info("the mesh API server has other addresses", "addresses", m.addresses)
	c.drop()
}

// ownAddresses puts the mesh configuration's addresses in place of those an answer
// names: the answer's are for other clusters, too, and may be names that only DNS
// of the cluster knows.
func (c *Client) ownAddresses(f *Facts) {
	if c.cfg.MeshConfig == "" {
		return
	}
	if m, err := readMeshConfig(c.cfg.MeshConfig); err == nil && m.cluster == f.Cluster {
		f.MeshAddresses = m.addresses
	}
}

// newBundle takes the mesh configuration's CA bundle where the one that is known
// does not verify the server any more: the CA was replaced, and the kubelet, which
// is believed, says so. It reports whether there is another one.
func (c *Client) newBundle() bool {
	if c.cfg.MeshConfig == "" {
		return false
	}
	m, err := readMeshConfig(c.cfg.MeshConfig)
	f, known := c.Facts()
	if err != nil || !known || m.cluster != f.Cluster || bytes.Equal(m.bundle, []byte(f.Bundle)) {
		return false
	}
	f.Bundle, f.MeshAddresses = string(m.bundle), m.addresses
	if err := c.take(f); err != nil {
		c.log.Error("new CA bundle not kept", "err", err)
		return false
	}
	c.log.Warn("the mesh API server has another CA; it is taken from the mesh configuration", "dir", c.cfg.MeshConfig)
	c.drop()
	return true
}

// registerOn is register on Kubernetes: it follows the mesh configuration, and
// where the certificate does not count any more begins again with the pod's token.
func (c *Client) registerOn(ctx context.Context) error {
	c.followMesh()
	err := c.register(ctx)
	if err != nil && ctx.Err() == nil && errors.Is(err, ErrUntrusted) && c.newBundle() {
		err = c.register(ctx)
	}
	if err != nil && ctx.Err() == nil && c.cfg.AccountToken != nil && status.Code(err) == codes.Unauthenticated {
		if again := c.introduceByAccount(ctx); again != nil {
			return errors.Join(err, again)
		}
		return nil
	}
	return err
}

// introduceByAccount gets a certificate by the service-account token of the pod
// this runs in. It goes only to a server that the mesh configuration's CA bundle
// verifies as the cluster's.
func (c *Client) introduceByAccount(ctx context.Context) error {
	m, err := readMeshConfig(c.cfg.MeshConfig)
	if err != nil {
		return err
	}
	if f, known := c.Facts(); known && f.Cluster != m.cluster {
		return fmt.Errorf("the mesh configuration is of cluster %s, this node belongs to %s: use another --state-dir to move a node", m.cluster, f.Cluster)
	}
	token, err := c.cfg.AccountToken() // read anew: the kubelet replaces it before it expires
	if err != nil {
		return fmt.Errorf("read the service-account token: %w", err)
	}
	leaf, err := c.leafFor(m.cluster)
	if err != nil {
		return err
	}
	csr, err := leaf.CSR()
	if err != nil {
		return err
	}
	req := c.request()
	req.ServiceAccountToken, req.Csr = strings.TrimSpace(token), csr
	var resp *pb.RegisterNodeResponse
	for _, address := range m.addresses {
		if resp, err = introduceTo(ctx, address, m, req); err == nil {
			break
		}
		err = fmt.Errorf("register node %s by its service-account token: %w", c.cfg.Node, explain(err, address))
	}
	if err != nil {
		return err
	}
	if len(resp.Bundle) == 0 {
		resp.Bundle = m.bundle
	}
	if err := checkChain(resp.Chain, resp.Bundle, leaf.Name()); err != nil {
		return fmt.Errorf("register node %s by its service-account token: %w", c.cfg.Node, err)
	}
	if err := leaf.Install(resp.Chain, resp.Bundle); err != nil {
		return err
	}
	if resp.Cluster != nil && len(resp.Cluster.MeshAddresses) == 0 {
		resp.Cluster.MeshAddresses = m.addresses
	}
	if err := c.accept(resp); err != nil {
		return err
	}
	c.log.Info("node registered by its service-account token", "cluster", m.cluster, "node", c.cfg.Node, "certificate expires", leaf.Expires().UTC())
	return nil
}

// leafFor is the node's certificate, made if there is none.
func (c *Client) leafFor(cluster string) (*certs.Leaf, error) {
	if leaf := c.Leaf(); leaf != nil {
		return leaf, nil
	}
	leaf, err := certs.NewLeaf(leafDir(c.cfg.StateDir), certs.Node(cluster, c.cfg.Node), c.log)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.setLeaf(leaf)
	c.mu.Unlock()
	return leaf, nil
}

func introduceTo(ctx context.Context, address string, m meshConfig, req *pb.RegisterNodeRequest) (*pb.RegisterNodeResponse, error) {
	tls := certs.BundleTLS(nil, m.bundle, certs.APIServer(m.cluster))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return pb.NewMeshClient(conn).RegisterNode(ctx, req)
}

// watchMesh has the node registered anew when the files of the mesh configuration
// change: the kubelet swaps a link in their folder.
func (c *Client) watchMesh(ctx context.Context) {
	if c.cfg.MeshConfig == "" {
		return
	}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer w.Close()
		err = w.Add(c.cfg.MeshConfig)
	}
	if err != nil {
		// It is read with each attempt to register, too.
		c.log.Warn("the mesh configuration is not watched; a change is noticed within minutes", "dir", c.cfg.MeshConfig, "err", err)
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-w.Events:
			if !ok {
				return
			}
			c.Nudge()
		case <-w.Errors:
			c.Nudge()
		}
	}
}
