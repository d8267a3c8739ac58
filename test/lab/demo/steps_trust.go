package demo

import (
	"context"
	"crypto/tls"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	etcdserverpb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

// strangers tries to read what it must not.
func (d *demo) strangers(ctx context.Context) error {
	d.title("A stranger, and a peer that wants too much", "The mesh port answers by certificate alone: nothing to strangers, what is exported to peers, and never what is local.")
	stranger, err := leafOf(filepath.Join(d.lab.Dir, "stranger-ca"), certs.Node(d.away.Name, "n1"))
	if err != nil {
		return err
	}
	export, local := "/tombolo/v1/export/"+d.home.Name+"/", "/tombolo/v1/local/"+d.home.Name+"/"
	_, err = d.read(ctx, d.home, stranger, export)
	d.assert("a stranger's certificate is refused", err != nil, "%s", reason(err))

	peer, err := leafOf(filepath.Join(d.away.StateDir(), "ca"), certs.Node(d.away.Name, d.away.Nodes[0].Name))
	if err != nil {
		return err
	}
	keys, err := d.read(ctx, d.home, peer, export)
	if err != nil || keys == 0 {
		return fmt.Errorf("a node of %s cannot read what %s exports: %d keys, %w", d.away.Name, d.home.Name, keys, err)
	}
	d.event("a node of %s reads the %d keys that %s exports", d.away.Name, keys, d.home.Name)
	_, err = d.read(ctx, d.home, peer, local)
	d.assert("a peer that asks for local/ is refused", status.Code(err) == codes.PermissionDenied, "%s", reason(err))
	return nil
}

func reason(err error) string {
	if err == nil {
		return "it was answered"
	}
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		text = s.Message()
	}
	text, _, _ = strings.Cut(text, "\n")
	if len(text) > 160 {
		text = text[:160] + "…"
	}
	return text
}

// leafOf makes a certificate signed by the CA in caDir, which is made if there
// is none: a stranger's.
func leafOf(caDir string, name certs.Name) (*certs.Leaf, error) {
	leaf, err := certs.NewLeaf("", name, nil)
	if err != nil {
		return nil, err
	}
	ca, err := certs.OpenCA(caDir, name.Cluster, time.Now())
	if err != nil {
		return nil, err
	}
	return leaf, sign(ca, leaf)
}

func sign(ca *certs.CA, leaf *certs.Leaf) error {
	csr, err := leaf.CSR()
	if err != nil {
		return err
	}
	chain, err := ca.Sign(csr, leaf.Name(), time.Hour, time.Now())
	if err != nil {
		return err
	}
	return leaf.Install(chain, ca.Bundle())
}

// read asks a cluster's mesh port for the keys under a prefix, from a node of
// the other cluster, and returns how many there are.
func (d *demo) read(ctx context.Context, c *lab.Cluster, leaf *certs.Leaf, prefix string) (int64, error) {
	bundles := certs.NewBundles()
	ca, err := certs.OpenCA(filepath.Join(c.StateDir(), "ca"), c.Name, time.Now())
	if err != nil {
		return 0, err
	}
	if err := bundles.Set(c.Name, ca.Bundle()); err != nil {
		return 0, err
	}
	config := certs.ClientTLS(leaf, bundles, certs.APIServer(c.Name))
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return leaf.Certificate(), nil }
	conn, err := grpc.NewClient("passthrough:///"+c.MeshAddress(),
		grpc.WithContextDialer(d.away.Nodes[0].Dial), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	end := []byte(prefix)
	end[len(end)-1]++
	res, err := etcdserverpb.NewKVClient(conn).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(prefix), RangeEnd: end, CountOnly: true})
	if err != nil {
		return 0, err
	}
	return res.Count, nil
}
