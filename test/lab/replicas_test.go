package lab

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// runEtcd is an etcd of its own with TLS, as somebody's operations team runs
// one: arguments are its folder, with ca.pem, server.pem and server.key.
func runEtcd(args []string) error {
	dir := args[0]
	c := embed.NewConfig()
	c.Dir, c.Name, c.LogLevel = filepath.Join(dir, "data"), "lab", "error"
	client, peer := url.URL{Scheme: "https", Host: "127.0.0.1:2379"}, url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ClientTLSInfo = transport.TLSInfo{CertFile: filepath.Join(dir, "server.pem"), KeyFile: filepath.Join(dir, "server.key"),
		TrustedCAFile: filepath.Join(dir, "ca.pem"), ClientCertAuth: true}
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer e.Close()
	return <-e.Err()
}

// etcdCertificates writes a CA and two certificates below it, for server and client.
func etcdCertificates(dir string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab etcd CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return err
	}
	errs := []error{writePEM(filepath.Join(dir, "ca.pem"), "CERTIFICATE", der)}
	for i, name := range []string{"server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
		if err != nil {
			return err
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		errs = append(errs, writePEM(filepath.Join(dir, name+".pem"), "CERTIFICATE", der), writePEM(filepath.Join(dir, name+".key"), "PRIVATE KEY", private))
	}
	return errors.Join(errs...)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// replica is one of two mesh API servers of a cluster.
type replica struct {
	name   string
	port   int
	args   []string
	admin  pb.AdminClient
	p      *Process
	t      *testing.T
	rig    *rig
	socket string
}

func (x *replica) start() {
	x.t.Helper()
	x.p = must(x.rig.a.ControlExec("apiserver-"+x.name, nil, nil, x.args...))(x.t)
}

func (x *replica) status(ctx context.Context) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return x.admin.Status(ctx, &pb.StatusRequest{})
}

// Two mesh API servers over one external etcd. A reader whose replica dies goes on
// at the other without reading everything again. A leader that was stopped past
// its lease and wakes up writes nothing.
func TestReplicas(t *testing.T) {
	t.Parallel()
	r := newEmptyRig(t, Options{})
	r.a = must(r.AddCluster("aws", 1))(t)
	dir := filepath.Join(r.a.Dir, "etcd")
	noError(t, os.Mkdir(dir, 0o700))
	noError(t, etcdCertificates(dir))
	exe := must(os.Executable())(t)
	must(r.a.ControlExec("etcd", nil, nil, exe, "lab-etcd", dir))(t)
	ca := filepath.Join(r.a.Dir, "ca")
	must(certs.OpenCA(ca, "aws", time.Now()))(t)
	caFile := filepath.Join(ca, "ca.pem")

	host, _, _ := net.SplitHostPort(r.a.MeshAddress())
	ports := []int{MeshPort, MeshPort + 1}
	var replicas []*replica
	for i, name := range []string{"one", "two"} {
		x := &replica{name: name, port: ports[i], t: t, rig: r, socket: filepath.Join(r.a.Dir, "control", name+".sock")}
		if i == 0 {
			x.socket = r.a.AdminSocket()
		}
		x.args = []string{filepath.Join(r.opts.BinDir, "tombolo-apiserver"), "--cluster", "aws", "--cluster-id", "1",
			"--state-dir", filepath.Join(r.a.Dir, "control", name), "--manifests", r.a.Manifests, "--socket", x.socket,
			"--listen", fmt.Sprintf("0.0.0.0:%d", ports[i]),
			"--advertise", fmt.Sprintf("%s:%d,%s:%d", host, ports[0], host, ports[1]),
			"--etcd-endpoints", "https://127.0.0.1:2379", "--etcd-ca", filepath.Join(dir, "ca.pem"),
			"--etcd-cert", filepath.Join(dir, "client.pem"), "--etcd-key", filepath.Join(dir, "client.key"),
			"--ca-cert", caFile, "--ca-key", caFile}
		conn := must(grpc.NewClient("unix://"+x.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second})))(t)
		r.closeLater(conn)
		x.admin = pb.NewAdminClient(conn)
		x.start()
		replicas = append(replicas, x)
	}
	r.eventually(15*time.Second, "both replicas answer and one leads", func() error { return oneLeader(r.ctx, replicas) })
	noError(t, r.a.startNodes(r.ctx))
	n := r.a.Nodes[0]
	noError(t, r.a.Apply("service-checkout", checkoutObject(nil)))
	r.addServer(r.a, "checkout-1", 0)
	r.client = must(n.AddPod(r.ctx, PodSpec{Name: "client"}))(t)
	r.awaitBackends(n, 1)
	c := must(r.client.Client("watch", patient(tcp(checkout4))))(t)
	defer c.Process.Kill()
	must(c.Await(r.ctx, "an answer", time.Time{}, Result.OK))(t)

	t.Run("a reader's replica dies", func(t *testing.T) {
		r := r.in(t)
		before := r.clusterStatus(n, "aws")
		at := r.readsFrom(n, ports)
		dead := replicas[slices.Index(ports, at)]
		dead.p.Kill()
		begin := time.Now()
		r.eventually(30*time.Second, "the reader goes on at the other replica", func() error {
			if s := r.clusterStatus(n, "aws"); !s.Connected {
				return fmt.Errorf("%+v", s)
			}
			if now := r.readsFrom(n, ports); now == at {
				return fmt.Errorf("it still reads from port %d", now)
			}
			return nil
		})
		took := time.Since(begin)
		r.allOK(c.Since(begin), "aws")
		r.addServer(r.a, "checkout-2", 0) // takes a new leader, if it was that one that died
		r.awaitBackends(n, 2)
		after := r.clusterStatus(n, "aws")
		if after.Lists != before.Lists || after.StoreID != before.StoreID || after.Incarnation != before.Incarnation {
			t.Errorf("the reader did not resume: %d lists before, %d after; store %s, %s", before.Lists, after.Lists, before.StoreID, after.StoreID)
		}
		t.Logf("resumed at the other replica after %.2f s, revision %d → %d, %d lists as before; a change published %.2f s after the death",
			took.Seconds(), before.Revision, after.Revision, after.Lists, time.Since(begin).Seconds())
		dead.start()
		r.eventually(15*time.Second, "both replicas answer and one leads", func() error { return oneLeader(r.ctx, replicas) })
	})
	t.Run("a leader sleeps past its lease", func(t *testing.T) {
		r := r.in(t)
		old, other := leaderOf(r.ctx, replicas)
		// Agents register by any replica: that is no publishing. This one sleeps too.
		noError(t, n.Agent().Signal(syscall.SIGSTOP))
		defer n.Agent().Signal(syscall.SIGCONT)
		noError(t, old.p.Signal(syscall.SIGSTOP))
		defer old.p.Signal(syscall.SIGCONT)
		begin := time.Now()
		// A change that only a leader publishes, after the stop.
		noError(t, r.a.Apply("service-checkout", checkoutObject(map[string]string{"weight": "7"})))
		r.eventually(30*time.Second, "the other replica leads and has published", func() error {
			st, err := other.status(r.ctx)
			if err != nil {
				return err
			}
			text, err := other.admin.Dump(r.ctx, &pb.DumpRequest{Prefix: "/tombolo/v1/export/aws/service/"})
			if err == nil && (!st.Leader || !strings.Contains(text.Text, "weight=7")) {
				err = fmt.Errorf("leader %v: %s", st.Leader, text.Text)
			}
			return err
		})
		t.Logf("the other replica published %.1f s after the leader was stopped", time.Since(begin).Seconds())
		// The sleeper wakes up with a newer source state to tell of at once, and an
		// old belief to be the leader. The new leader's word must stand.
		var before *pb.StatusResponse
		r.eventually(15*time.Second, "the new leader has nothing more to write", func() error {
			last := before
			before = must(other.status(r.ctx))(t)
			time.Sleep(500 * time.Millisecond)
			if last == nil || last.Revision != before.Revision {
				return fmt.Errorf("the store is at %d", before.Revision)
			}
			return nil
		})
		records := must(other.admin.Dump(r.ctx, &pb.DumpRequest{Prefix: "/tombolo/v1/export/"}))(t).Text
		noError(t, old.p.Signal(syscall.SIGCONT))
		time.Sleep(3 * time.Second)
		r.eventually(15*time.Second, "both replicas are sane", func() error { return oneLeader(r.ctx, replicas) })
		if now := must(other.status(r.ctx))(t); !now.Leader || now.Revision != before.Revision {
			t.Errorf("the sleeper wrote something: the store is at %d, it was at %d; the other leads: %v", now.Revision, before.Revision, now.Leader)
		}
		for _, x := range replicas {
			if text := must(x.admin.Dump(r.ctx, &pb.DumpRequest{Prefix: "/tombolo/v1/export/"}))(t).Text; text != records {
				t.Errorf("replica %s shows other records:\n%s\nthe leader had:\n%s", x.name, text, records)
			}
		}
		if st := must(old.status(r.ctx))(t); st.Leader {
			t.Error("the sleeper thinks that it leads")
		}
		noError(t, r.a.Apply("service-checkout", checkoutObject(map[string]string{"weight": "8"})))
		for _, x := range replicas {
			r.eventually(10*time.Second, x.name+" shows the next change", func() error {
				text, err := x.admin.Dump(r.ctx, &pb.DumpRequest{Prefix: "/tombolo/v1/export/aws/service/"})
				if err == nil && !strings.Contains(text.Text, "weight=8") {
					err = errors.New(text.Text)
				}
				return err
			})
		}
	})
	r.allOK(must(c.AwaitMore(r.ctx, time.Now(), 50))(t), "aws")
}

// oneLeader is nil when both answer and exactly one leads.
func oneLeader(ctx context.Context, replicas []*replica) error {
	leaders := 0
	for _, x := range replicas {
		st, err := x.status(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		if st.Leader {
			leaders++
		}
	}
	if leaders != 1 {
		return fmt.Errorf("%d leaders", leaders)
	}
	return nil
}

func leaderOf(ctx context.Context, replicas []*replica) (leader, other *replica) {
	if st, err := replicas[0].status(ctx); err == nil && st.Leader {
		return replicas[0], replicas[1]
	}
	return replicas[1], replicas[0]
}

// readsFrom is the mesh port with the most connections of the node.
func (r *rig) readsFrom(n *Node, ports []int) int {
	r.t.Helper()
	out := must(n.host.run(r.ctx, nil, "", "cat", "/proc/net/tcp"))(r.t)
	count := map[int]int{}
	for line := range strings.Lines(out) {
		w := strings.Fields(line)
		if len(w) < 4 || w[3] != "01" { // established
			continue
		}
		_, hex, _ := strings.Cut(w[2], ":")
		port, _ := strconv.ParseInt(hex, 16, 32)
		count[int(port)]++
	}
	best := 0
	for _, p := range ports {
		if count[p] > count[best] {
			best = p
		}
	}
	if best == 0 {
		r.t.Fatalf("the node reads from neither of %v:\n%s", ports, bytes.TrimSpace([]byte(out)))
	}
	return best
}
