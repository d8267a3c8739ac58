package register

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

const (
	retryFirst = 500 * time.Millisecond
	retryMost  = 15 * time.Second
	// again is how often a registered node says the same once more: an API
	// server that lost its store learns of its nodes within that time.
	again = 2 * time.Minute
	// againLeast bounds what a server may ask for instead.
	againLeast = time.Second
)

// Register does one attempt: by token if there is no certificate, else by the
// certificate, which is renewed first if its time is over.
func (c *Client) Register(ctx context.Context) error {
	err := c.registerOn(ctx)
	c.mu.Lock()
	c.problem = err
	c.mu.Unlock()
	return err
}

func (c *Client) register(ctx context.Context) error {
	leaf := c.Leaf()
	if leaf == nil || leaf.Certificate() == nil {
		if c.cfg.AccountToken != nil {
			return c.introduceByAccount(ctx)
		}
		return c.introduce(ctx)
	}
	if !leaf.Valid() && time.Now().After(leaf.Expires()) {
		if err := leaf.Renew(ctx, c.sign); err != nil {
			return fmt.Errorf("renew the certificate that expired at %s: %w", leaf.Expires().UTC().Format(time.RFC3339), err)
		}
	}
	var resp *pb.RegisterNodeResponse
	err := c.call(ctx, func(ctx context.Context, m pb.MeshClient) (err error) {
		resp, err = m.RegisterNode(ctx, c.request())
		return err
	})
	if err != nil {
		return fmt.Errorf("register node %s: %w", c.cfg.Node, err)
	}
	return c.accept(resp)
}

func (c *Client) request() *pb.RegisterNodeRequest {
	c.mu.Lock()
	self, keys := c.self, c.facts.gossipKeyIDs()
	c.mu.Unlock()
	req := &pb.RegisterNodeRequest{Node: c.cfg.Node, WireguardKey: self.WireGuardKey[:], WireguardEndpoint: self.WireGuardEndpoint, WireguardPort: uint32(self.WireGuardPort), GossipKeys: keys, Clock: time.Now().UnixNano()}
	for _, a := range self.UnderlayAddresses {
		req.UnderlayAddresses = append(req.UnderlayAddresses, a.AsSlice())
	}
	return req
}

// accept takes over an answer that came over a verified connection.
func (c *Client) accept(resp *pb.RegisterNodeResponse) error {
	old, _ := c.Facts()
	f, err := factsFrom(resp, c.cfg.Node, old)
	if err != nil {
		return fmt.Errorf("answer of the mesh API server: %w", err)
	}
	if old.Cluster != "" && (f.Cluster != old.Cluster || f.ClusterID != old.ClusterID) {
		return fmt.Errorf("the mesh API server says this is cluster %s (ID %d), this node belongs to %s (ID %d): use another --state-dir to move a node", f.Cluster, f.ClusterID, old.Cluster, old.ClusterID)
	}
	c.ownAddresses(&f)
	c.setAgain(time.Duration(resp.Again))
	if f.equal(old) {
		return nil
	}
	if err := c.take(f); err != nil {
		return err
	}
	if !slices.EqualFunc(f.GossipKeys, old.GossipKeys, bytes.Equal) {
		c.Nudge() // a rotation goes on when all have said that they took the step
	}
	return nil
}

// setAgain is what the mesh API server says of how soon it wants to hear again.
func (c *Client) setAgain(d time.Duration) {
	if d <= 0 || d > again {
		d = again
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.again = max(d, againLeast)
}

// take makes facts the present ones, on disk first.
func (c *Client) take(f Facts) error {
	if err := f.write(c.cfg.StateDir); err != nil {
		return err
	}
	if err := c.adopt(f); err != nil {
		return err
	}
	if c.cfg.Changed != nil {
		c.cfg.Changed(f)
	}
	return nil
}

func (c *Client) nextTime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cmp.Or(c.again, again)
}

// introduce gets the first certificate by the token. The connection is pinned:
// the secret goes only to a server whose chain holds the CA the token names.
func (c *Client) introduce(ctx context.Context) error {
	token, err := c.token()
	if err != nil {
		return err
	}
	leaf := c.Leaf()
	if leaf == nil {
		if leaf, err = certs.NewLeaf(leafDir(c.cfg.StateDir), certs.Node(token.Cluster, c.cfg.Node), c.log); err != nil {
			return err
		}
		c.mu.Lock()
		c.setLeaf(leaf)
		c.mu.Unlock()
		if leaf.Certificate() != nil && c.knowsBundle(token.Cluster) {
			return c.register(ctx)
		}
	}
	csr, err := leaf.CSR()
	if err != nil {
		return err
	}
	req := c.request()
	req.TokenId, req.Secret, req.Csr = token.ID, token.Secret, csr
	var resp *pb.RegisterNodeResponse
	for _, address := range token.Addresses {
		if resp, err = introduceAt(ctx, address, token, req); err == nil {
			break
		}
		err = fmt.Errorf("register node %s by token %s: %w", c.cfg.Node, token.ID, explain(err, address))
	}
	if err != nil {
		return err
	}
	if err := checkIntroduction(resp, token, leaf.Name()); err != nil {
		return fmt.Errorf("register node %s by token %s: %w", c.cfg.Node, token.ID, err)
	}
	// The token is used up by now. The certificate goes to disk first: with it,
	// everything else can be asked for again.
	if err := leaf.Install(resp.Chain, resp.Bundle); err != nil {
		return err
	}
	if resp.Cluster != nil && len(resp.Cluster.MeshAddresses) == 0 {
		resp.Cluster.MeshAddresses = token.Addresses
	}
	if err := c.accept(resp); err != nil {
		return err
	}
	c.log.Info("node registered by its token", "cluster", token.Cluster, "node", c.cfg.Node, "certificate expires", leaf.Expires().UTC())
	return nil
}

func (c *Client) knowsBundle(cluster string) bool { return c.bundles.Get(cluster) != nil }

func introduceAt(ctx context.Context, address string, token certs.Token, req *pb.RegisterNodeRequest) (*pb.RegisterNodeResponse, error) {
	tls := certs.PinnedTLS(nil, token.Fingerprint, certs.APIServer(token.Cluster))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return pb.NewMeshClient(conn).RegisterNode(ctx, req)
}

// token reads and checks the token before anything is sent.
func (c *Client) token() (certs.Token, error) {
	if c.cfg.Token == nil {
		return certs.Token{}, errors.New("this node has no certificate and no token: make a node token for it on its cluster and start the agent with --token-file")
	}
	text, err := c.cfg.Token()
	if err != nil {
		return certs.Token{}, fmt.Errorf("read the node token: %w; it is needed for the first start only", err)
	}
	t, err := certs.ParseToken(text)
	if err != nil {
		return t, fmt.Errorf("node token: %w", err)
	}
	facts, known := c.Facts()
	switch {
	case t.Kind != certs.NodeToken:
		return t, fmt.Errorf("node token: this is a %s token: make a node token for %s", t.Kind, c.cfg.Node)
	case t.Node != c.cfg.Node:
		return t, fmt.Errorf("node token: it is for node %s, this is %s: make one for this node, or start with --node %s", t.Node, c.cfg.Node, t.Node)
	case known && t.Cluster != facts.Cluster:
		return t, fmt.Errorf("node token: it is of cluster %s, this node belongs to %s: use another --state-dir to move a node", t.Cluster, facts.Cluster)
	case t.Expired(time.Now()):
		return t, fmt.Errorf("node token: it expired at %s (this clock says %s): make a new one, or set the clock", t.Expires.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
	}
	return t, nil
}

// checkIntroduction makes sure that what the pinned server handed over is of the
// pinned CA: the certificate verifies by the bundle, and the CA is in it.
func checkIntroduction(resp *pb.RegisterNodeResponse, token certs.Token, name certs.Name) error {
	bundle := resp.Bundle
	if len(bundle) == 0 {
		bundle = resp.GetCluster().GetCaBundle()
	}
	anchors, err := certs.ParseBundle(bundle)
	if err != nil {
		return fmt.Errorf("the answer's CA bundle: %w", err)
	}
	pinned := false
	for _, a := range anchors {
		pinned = pinned || certs.Fingerprint(a) == token.Fingerprint
	}
	if !pinned {
		return fmt.Errorf("the answer's CA bundle lacks the CA %s that the token names", token.Fingerprint)
	}
	return checkChain(resp.Chain, bundle, name)
}

// checkChain makes sure that a certificate is for name and verifies by the bundle.
func checkChain(text, bundle []byte, name certs.Name) error {
	chain, err := certs.ParseBundle(text)
	if err != nil {
		return fmt.Errorf("the answer's certificate: %w", err)
	}
	var raw [][]byte
	for _, cert := range chain {
		raw = append(raw, cert.Raw)
	}
	got, err := certs.VerifyWith(bundle, raw, time.Now())
	if err != nil {
		return fmt.Errorf("the answer's certificate: %w", err)
	}
	if got != name {
		return fmt.Errorf("the answer's certificate is for %s, not %s", got, name)
	}
	return nil
}

// sign renews: it is the certs.SignFunc of the node's leaf.
func (c *Client) sign(ctx context.Context, csr []byte) (chain, bundle []byte, err error) {
	err = c.call(ctx, func(ctx context.Context, m pb.MeshClient) error {
		resp, err := m.Renew(ctx, &pb.RenewRequest{Csr: csr})
		chain, bundle = resp.GetChain(), resp.GetBundle()
		return err
	})
	return chain, bundle, err
}

// sameFailure counts how often in a row an attempt failed with one text.
type sameFailure struct {
	text  string
	times int
}

// level is how loud the next failure is: the first few with one text are heard,
// after them it says nothing new (the status names it all the time).
func (s *sameFailure) level(err error) slog.Level {
	if text := err.Error(); s.text != text {
		*s = sameFailure{text: text}
	}
	s.times++
	if s.times > 3 {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// Run registers the node and keeps it registered, and renews its certificate at
// half-life, until ctx ends. Failures are logged, kept as Problem, and retried:
// nothing that works stops working because of them.
func (c *Client) Run(ctx context.Context) error {
	watching := make(chan struct{})
	go func() { defer close(watching); c.watchMesh(ctx) }()
	defer func() { <-watching }()
	renewing := make(chan struct{})
	started := false
	defer func() {
		if started {
			<-renewing
		}
	}()
	wait := retryFirst
	var failures sameFailure
	for ctx.Err() == nil {
		var next time.Duration
		if err := c.Register(ctx); err != nil {
			if ctx.Err() != nil {
				break
			}
			c.log.Log(ctx, failures.level(err), "node not registered; what is known keeps working", "err", err, "retry", wait)
			next, wait = pause(wait), min(wait*2, retryMost)
		} else {
			next, wait, failures = pause(c.nextTime()), retryFirst, sameFailure{}
			if !started {
				started = true
				go func() {
					defer close(renewing)
					c.Leaf().Run(ctx, c.sign)
				}()
			}
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.nudge:
		}
		timer.Stop()
	}
	return ctx.Err()
}
