package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// dialTimeout bounds one attempt at one address, handshake included.
const dialTimeout = 5 * time.Second

// meshConn is a connection to another cluster's mesh port.
type meshConn struct {
	pb.MeshClient
	addr  string
	state tls.ConnectionState
	close func()
}

// errUnreachable marks failures to connect at all, as opposed to a server that
// is the wrong one.
var errUnreachable = errors.New("unreachable")

// dialMesh connects to the first of addrs that answers and verifies. TLS is
// made here and not by gRPC, so that its errors keep their words.
func dialMesh(ctx context.Context, addrs []string, conf *tls.Config) (*meshConn, error) {
	var errs []error
	for _, addr := range addrs {
		conn, err := dialOne(ctx, addr, conf)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("%w: no address is known", errUnreachable)
	}
	return nil, joinErrors(errs)
}

// joinErrors is errors.Join on one line.
func joinErrors(errs []error) error {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return &manyErrors{strings.Join(texts, "; "), errs}
}

type manyErrors struct {
	text string
	errs []error
}

func (e *manyErrors) Error() string   { return e.text }
func (e *manyErrors) Unwrap() []error { return e.errs }

func dialOne(ctx context.Context, addr string, conf *tls.Config) (*meshConn, error) {
	first, err := dialTLS(ctx, addr, conf)
	if err != nil {
		return nil, err
	}
	m := &meshConn{addr: addr, state: first.ConnectionState()}
	ready := make(chan net.Conn, 1)
	ready <- first
	cc, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is underneath
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			select {
			case c := <-ready:
				return c, nil
			default:
				return dialTLS(ctx, addr, conf)
			}
		}))
	if err != nil {
		first.Close()
		return nil, err
	}
	m.MeshClient = pb.NewMeshClient(cc)
	m.close = func() {
		cc.Close()
		select {
		case c := <-ready: // no call was ever made
			c.Close()
		default:
		}
	}
	return m, nil
}

func dialTLS(ctx context.Context, addr string, conf *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// hello dials a cluster that is known by its bundle and makes sure that it is
// the one, and that its clock fits.
func (p *Port) hello(ctx context.Context, addrs []string, bundle []byte, cluster string) (addr string, err error) {
	conn, err := dialMesh(ctx, addrs, certs.BundleTLS(p.cfg.Leaf, bundle, certs.APIServer(cluster)))
	if err != nil {
		return "", err
	}
	defer conn.close()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	answer, err := conn.Hello(ctx, &pb.HelloRequest{})
	if err != nil {
		return "", fmt.Errorf("%s: %w", conn.addr, err)
	}
	if answer.Cluster != cluster {
		return "", fmt.Errorf("%s: cluster %q answers, expected %q", conn.addr, answer.Cluster, cluster)
	}
	return conn.addr, nil
}
