package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/tombolo-mesh/tombolo/certs"
)

// caller is one connection and whom it comes from. It is the AuthInfo of every
// call on it.
type caller struct {
	credentials.CommonAuthInfo
	chain   [][]byte   // as sent: DER, leaf first; nil without a certificate
	name    certs.Name // meaningful if err is nil
	expired bool       // a node's certificate within its grace period
	err     error      // why the certificate does not count; nil if it does
	ends    time.Time  // of the certificate

	conn    net.Conn
	leaving atomic.Bool // its own call changes what it may: the answer may still go out
	timer   *time.Timer
}

// stranger reports whether the certificate is good for introductions only.
func (c *caller) stranger() bool { return c.err != nil || c.expired }

// AuthType names our own rules.
func (*caller) AuthType() string { return "tombolo" }

// callerOf is never nil on the mesh port.
func callerOf(ctx context.Context) *caller {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(*caller); ok {
			return c
		}
	}
	return &caller{err: errNoCertificate}
}

var errNoCertificate = errors.New("no certificate was shown")

// transport makes TLS connections with callers. A certificate that does not
// verify does not end the handshake: a joining cluster's cannot verify yet, and
// everybody else gets an answer that says what is wrong. It just counts for nothing.
type transport struct {
	port *Port
	conf *tls.Config
}

func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := tls.Server(raw, t.conf)
	ctx, cancel := context.WithTimeout(context.Background(), t.port.cfg.Handshake)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, nil, err
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		raw.Close()
		return nil, nil, errors.New("the client does not speak HTTP/2")
	}
	c := &caller{chain: certs.RawChain(state), conn: raw}
	c.SecurityLevel = credentials.PrivacyAndIntegrity
	if len(state.PeerCertificates) > 0 {
		c.ends = state.PeerCertificates[0].NotAfter
	}
	tracked, err := t.port.conns.add(conn, c, t.port.identify)
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	return tracked, c, nil
}

func (t *transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("the mesh port does not dial")
}

func (t *transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t *transport) Clone() credentials.TransportCredentials { c := *t; return &c }

func (t *transport) OverrideServerName(string) error { return nil }

// identify verifies the caller's chain against the bundles of this moment.
func (p *Port) identify(c *caller) (name certs.Name, expired bool, err error) {
	if len(c.chain) == 0 {
		return certs.Name{}, false, errNoCertificate
	}
	name, expired, err = p.cfg.Bundles.VerifyGrace(c.chain, p.cfg.Now())
	if expired && name.Cluster != p.own {
		// The grace period is for renewal, and only the own cluster renews.
		_, err = p.cfg.Bundles.Verify(c.chain, p.cfg.Now())
		expired = false
	}
	return name, expired, err
}

// connections knows all live connections and bounds their number.
type connections struct {
	strangers int
	slots     chan struct{} // one per accepted connection
	now       func() time.Time

	mu         sync.Mutex
	all        map[*caller]struct{}
	news       int    // of them without a verified certificate
	generation uint64 // counts closeIf
}

func newConnections(cfg PortConfig) *connections {
	return &connections{
		strangers: cfg.Strangers, slots: make(chan struct{}, cfg.Connections), now: cfg.Now,
		all: make(map[*caller]struct{}),
	}
}

// strangerTime is how long a connection without a verified certificate may last.
const strangerTime = time.Minute

// add verifies a connection and takes it in. A bundle that changes meanwhile
// makes it verify again: nobody slips in between a look and an entry.
func (cs *connections) add(conn net.Conn, c *caller, identify func(*caller) (certs.Name, bool, error)) (net.Conn, error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for generation := cs.generation - 1; generation != cs.generation; {
		generation = cs.generation
		cs.mu.Unlock() // signatures take their time
		c.name, c.expired, c.err = identify(c)
		cs.mu.Lock()
	}
	life := c.ends.Sub(cs.now())
	if c.stranger() {
		if cs.news >= cs.strangers {
			return nil, errors.New("too many connections without a verified certificate")
		}
		cs.news++
		life = strangerTime
	}
	cs.all[c] = struct{}{}
	// The end of the certificate ends the connection: the client comes back
	// with its new one and resumes.
	c.timer = time.AfterFunc(life, func() { c.conn.Close() })
	return &trackedConn{Conn: conn, closed: func() { cs.remove(c) }}, nil
}

func (cs *connections) remove(c *caller) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if _, ok := cs.all[c]; !ok {
		return
	}
	delete(cs.all, c)
	if c.stranger() {
		cs.news--
	}
	c.timer.Stop()
}

// readers counts the connections of a cluster.
func (cs *connections) readers(cluster string) int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	n := 0
	for c := range cs.all {
		if c.err == nil && c.name.Cluster == cluster {
			n++
		}
	}
	return n
}

// leavingTime lets the answer to Join or Leave reach its caller.
const leavingTime = 500 * time.Millisecond

// closeIf ends the connections that drop answers true for.
func (cs *connections) closeIf(drop func(*caller) bool) (closed int) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.generation++
	for c := range cs.all {
		if !drop(c) {
			continue
		}
		closed++
		if c.leaving.Load() {
			time.AfterFunc(leavingTime, func() { c.conn.Close() })
			continue
		}
		c.conn.Close()
	}
	return closed
}

// bundleChanged closes the connections of a cluster that are judged otherwise
// now: those that would not be let in any more, and those of strangers that
// would, as who a connection belongs to is settled when it is made.
func (p *Port) bundleChanged(cluster string) {
	n := p.conns.closeIf(func(c *caller) bool {
		if c.err != nil {
			name, err := certs.ChainName(c.chain)
			if err != nil || name.Cluster != cluster {
				return false
			}
		} else if c.name.Cluster != cluster {
			return false
		}
		_, _, err := p.identify(c)
		return (err == nil) != (c.err == nil)
	})
	if n > 0 {
		p.log.Info("connections closed: what is trusted has changed", "cluster", cluster, "connections", n)
	}
	if p.etcd != nil && len(p.cfg.Bundles.Get(cluster)) == 0 {
		p.etcd.CloseClient(func(name string) bool { return isOf(name, cluster) })
	}
}

// isOf reports whether a reader's name (its URI) is of the cluster.
func isOf(name, cluster string) bool {
	prefix := "spiffe://" + cluster + "/"
	return len(name) > len(prefix) && name[:len(prefix)] == prefix
}

// limit holds further connections back in the kernel's queue when all slots
// are taken.
func (cs *connections) limit(l net.Listener) net.Listener {
	return &limitListener{Listener: l, slots: cs.slots, done: make(chan struct{})}
}

type limitListener struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &trackedConn{Conn: conn, closed: func() { <-l.slots }}, nil
}

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// trackedConn calls closed once when it is closed.
type trackedConn struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *trackedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.closed)
	return err
}
