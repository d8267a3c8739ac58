// Package register is the agent's side of registration: a node's first
// certificate by a one-time token, its renewal, and what the node tells its
// cluster of itself and of its pods.
//
// No secret is sent to a server that is not verified: the first connection is
// pinned to the CA fingerprint in the token, later ones verify the cluster's
// bundle.
package register

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// Config makes a Client.
type Config struct {
	StateDir string // facts, certificate and key are kept here, mode 0600
	Node     string // this node's name
	// Token reads the one-time node token. It is called only while there is no
	// certificate; nil = there is no token.
	Token func() (string, error)
	// On Kubernetes: MeshConfig is the folder with the cluster's name, the mesh API
	// servers' addresses and the CA bundle, which is followed; AccountToken reads
	// the service-account token of the pod this runs in, with which the node gets
	// a certificate if it has none that counts. Empty and nil elsewhere.
	MeshConfig   string
	AccountToken func() (string, error)
	// Changed is called with the facts after each change of them, from Run's
	// goroutine. nil = nobody asks.
	Changed func(Facts)
	// Back is called when a mesh API server answers again after the connection
	// was lost: what it was told before may be lost with its store. It must not
	// block. nil = nobody asks.
	Back func()
	Log  *slog.Logger // nil = discard
}

// Self is what the node says of itself.
type Self struct {
	UnderlayAddresses []netip.Addr
	WireGuardKey      [32]byte // public
	WireGuardEndpoint string   // host:port; "" = behind NAT
	WireGuardPort     uint16   // that it listens at
}

// Endpoint is what the node says of a pod of its own.
type Endpoint struct {
	Namespace, Name, Owner string // Owner: pod UID
	Addresses              []netip.Addr
	Ready, Remove          bool
}

// Client speaks with the mesh API servers of the own cluster. All methods are
// safe for concurrent use.
type Client struct {
	cfg     Config
	log     *slog.Logger
	bundles *certs.Bundles
	nudge   chan struct{}

	mu      sync.Mutex
	facts   Facts // zero = never registered
	leaf    *certs.Leaf
	self    Self
	conn    *grpc.ClientConn
	at      int           // which of the mesh addresses conn leads to
	problem error         // of the last attempt; nil = it succeeded
	lost    bool          // a connection broke, and none has stood since
	again   time.Duration // how soon the server wants to hear from this node; 0 = it has not said
}

// Open reads what the disk holds. It needs no server. Facts that cannot be read
// are named in the log and set aside if there is a token to begin again with.
func Open(cfg Config) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, log: cfg.Log, bundles: certs.NewBundles(), nudge: make(chan struct{}, 1)}
	facts, ok, err := ReadFacts(cfg.StateDir)
	if err != nil {
		file := factsFile(cfg.StateDir)
		if rerr := os.Rename(file, file+".bad"); rerr != nil {
			return nil, errors.Join(err, rerr)
		}
		c.log.Error("cluster facts cannot be used and were set aside", "aside", file+".bad", "err", err, "fix", "the node registers again; if it cannot, give it a new node token (--token-file)")
	}
	if !ok {
		return c, nil
	}
	if facts.Node != cfg.Node {
		return nil, fmt.Errorf("state directory %s belongs to node %q, this is %q: start with --node %s, or with another --state-dir", cfg.StateDir, facts.Node, cfg.Node, facts.Node)
	}
	return c, c.adopt(facts)
}

// adopt makes facts the present ones in memory.
func (c *Client) adopt(f Facts) error {
	if err := c.bundles.Set(f.Cluster, []byte(f.Bundle)); err != nil {
		return fmt.Errorf("CA bundle of cluster %s: %w", f.Cluster, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.facts = f
	if c.leaf == nil {
		leaf, err := certs.NewLeaf(leafDir(c.cfg.StateDir), certs.Node(f.Cluster, c.cfg.Node), c.log)
		if err != nil {
			return err
		}
		c.setLeaf(leaf)
	}
	return nil
}

// setLeaf is called with the lock held. Connections made with an older
// certificate are not used for new calls.
func (c *Client) setLeaf(leaf *certs.Leaf) {
	c.leaf = leaf
	leaf.OnChange(c.drop)
}

func leafDir(stateDir string) string { return filepath.Join(stateDir, "certificate") }

// Facts returns what is known; ok is false before the first registration.
func (c *Client) Facts() (f Facts, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.facts, c.facts.Cluster != ""
}

// Leaf is the node's certificate; nil before the first registration.
func (c *Client) Leaf() *certs.Leaf {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaf
}

// Bundles holds the own cluster's bundle, and whatever the caller adds for peers.
func (c *Client) Bundles() *certs.Bundles { return c.bundles }

// Problem is why the last attempt to register failed; nil = it did not.
func (c *Client) Problem() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problem
}

// Close ends the connection. Run must have ended.
func (c *Client) Close() { c.drop() }

func (c *Client) drop() {
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// Update says what the node is to be registered as, and has it registered soon
// if that is new.
func (c *Client) Update(s Self) {
	c.mu.Lock()
	c.self = s
	c.mu.Unlock()
	c.Nudge()
}

// Nudge makes Run register again soon.
func (c *Client) Nudge() {
	select {
	case c.nudge <- struct{}{}:
	default:
	}
}

// call makes one call with the node's certificate. A server that cannot be
// reached makes the next call go to the next address.
func (c *Client) call(ctx context.Context, f func(context.Context, pb.MeshClient) error) error {
	c.mu.Lock()
	addresses := c.facts.MeshAddresses
	c.mu.Unlock()
	if len(addresses) == 0 {
		return errors.New("this node is not registered yet")
	}
	var last error
	replaced := 0
	for tries := 0; tries < len(addresses)+1; tries++ {
		conn, address, err := c.dial()
		if err != nil {
			return err
		}
		attempt, cancel := context.WithTimeout(ctx, callTimeout)
		err = f(attempt, pb.NewMeshClient(conn))
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		last = explain(err, address)
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded:
			c.next(conn)
		case codes.Canceled: // not by us: the certificate changed and took the connection along
			if replaced++; replaced <= mostReplaced {
				tries-- // the server has not failed
			}
		default:
			return last
		}
	}
	return last
}

const (
	callTimeout = 10 * time.Second
	// mostReplaced is how often one call is begun anew because the certificate
	// was renewed under it.
	mostReplaced = 32
)

// dial returns the present connection or makes one.
func (c *Client) dial() (*grpc.ClientConn, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	address := c.facts.MeshAddresses[c.at%len(c.facts.MeshAddresses)]
	if c.conn != nil {
		return c.conn, address, nil
	}
	tls := certs.ClientTLS(c.leaf, c.bundles, certs.APIServer(c.facts.Cluster))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		return nil, address, fmt.Errorf("mesh API server %s: %w", address, err)
	}
	c.conn = conn
	go c.watch(conn)
	return conn, address, nil
}

// watch registers again when a lost connection comes back: the server may have
// been replaced by one with another store. It ends with the connection.
func (c *Client) watch(conn *grpc.ClientConn) {
	stood := false
	for state := conn.GetState(); state != connectivity.Shutdown; state = conn.GetState() {
		switch state {
		case connectivity.Ready:
			stood = true
			if c.setLost(false) {
				c.Nudge()
				if c.cfg.Back != nil {
					c.cfg.Back()
				}
			}
		case connectivity.Idle:
			if stood {
				c.setLost(true)
			}
			conn.Connect()
		case connectivity.TransientFailure:
			c.setLost(true)
		}
		conn.WaitForStateChange(context.Background(), state)
	}
}

// setLost notes whether the server is out of reach; it returns what was so before.
func (c *Client) setLost(is bool) (was bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, c.lost = c.lost, is
	return was
}

// next gives conn up and turns to the next address.
func (c *Client) next(conn *grpc.ClientConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		c.conn, c.lost = nil, true
		c.at++
		conn.Close()
	}
}

// RegisterEndpoint says which addresses a pod has, or that it is gone.
func (c *Client) RegisterEndpoint(ctx context.Context, e Endpoint) (clustermesh.Identity, error) {
	req := &pb.RegisterEndpointRequest{Namespace: e.Namespace, Name: e.Name, Owner: e.Owner, Ready: e.Ready, Remove: e.Remove}
	for _, a := range e.Addresses {
		req.Addresses = append(req.Addresses, a.AsSlice())
	}
	var id clustermesh.Identity
	err := c.call(ctx, func(ctx context.Context, m pb.MeshClient) error {
		resp, err := m.RegisterEndpoint(ctx, req)
		id = clustermesh.Identity(resp.GetIdentity())
		return err
	})
	return id, err
}

// pause is d give or take a fifth, so that nodes do not call in step.
func pause(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5) }
