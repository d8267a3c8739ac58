package apiserver

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// privatePrefix is what a mesh API server keeps for itself; no reader is
// authorised for it.
func privatePrefix(cluster string) string { return clustermesh.Root + "private/" + cluster + "/" }

// The spaces of numbers.
func identityPrefix(cluster string) string   { return privatePrefix(cluster) + "number/identity/" }
func nodeNumberPrefix(cluster string) string { return privatePrefix(cluster) + "number/node/" }

// claimsSink brings what is under private/<cluster>/ from the watch cache to the
// core: registrations and numbers. It is used from Follow's goroutine.
type claimsSink struct {
	core *core
	log  *slog.Logger
	fill []kvstore.KV
	list bool
}

func (s *claimsSink) Begin(kvstore.Position, []byte) error {
	s.fill, s.list = nil, true
	return nil
}

func (s *claimsSink) Apply(_ kvstore.Position, events []kvstore.Event) error {
	if s.list {
		for _, e := range events {
			s.fill = append(s.fill, e.KV)
		}
		return nil
	}
	if len(events) > 0 {
		s.core.do(func() {
			for _, e := range events {
				s.core.claimEvent(e)
			}
		})
	}
	return nil
}

func (s *claimsSink) Synced(kvstore.Position) {
	kvs := s.fill
	s.fill, s.list = nil, false
	s.core.do(func() { s.core.replaceClaims(kvs) })
}

// Lost changes nothing: silence is not deletion.
func (s *claimsSink) Lost(error) { s.fill, s.list = nil, false }

// claimEvent takes one change. It runs in the core's goroutine.
func (c *core) claimEvent(e kvstore.Event) {
	value := e.KV.Value
	if e.Delete {
		value = nil
	} else if value == nil {
		value = []byte{}
	}
	if err := c.claim(e.KV.Key, value, e.KV.ModRevision); err != nil {
		c.log.Error("a private record cannot be read; what was known stays in force", "key", e.KV.Key, "err", err)
	}
}

// claim takes what one key holds now; value nil = nothing.
func (c *core) claim(key string, value []byte, rev int64) error {
	at := clustermesh.OriginAt(time.Now())
	switch {
	case strings.HasPrefix(key, c.identities.cfg.Prefix):
		text, err := c.identities.apply(key, value, rev)
		if err == nil && text != "" {
			c.d.touchIdentity(text, at)
		}
		return err
	case strings.HasPrefix(key, c.nodeNumbers.cfg.Prefix):
		node, err := c.nodeNumbers.apply(key, value, rev)
		if err == nil && node != "" {
			c.d.touchNode(node, at)
		}
		return err
	}
	if name, ok := strings.CutPrefix(key, privatePrefix(c.cfg.Cluster)+"node/"); ok {
		claim, err := nodeClaimFrom(value)
		if err == nil {
			c.d.setNodeClaim(name, claim, at)
		}
		return err
	}
	if name, ok := strings.CutPrefix(key, privatePrefix(c.cfg.Cluster)+"endpoint/"); ok {
		namespace, pod, _ := strings.Cut(name, "/")
		claim, err := endpointClaimFrom(value)
		if err == nil {
			if claim != nil {
				at = claim.origin
			}
			c.d.setEndpointClaim(objectName{namespace, pod}, claim, at)
		}
		return err
	}
	return nil // tokens, notes of joins, the leader key
}

// replaceClaims puts a complete list in place of everything known.
func (c *core) replaceClaims(kvs []kvstore.KV) {
	var identities, nodes []kvstore.KV
	seen := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		seen[kv.Key] = true
		switch {
		case strings.HasPrefix(kv.Key, c.identities.cfg.Prefix):
			identities = append(identities, kv)
		case strings.HasPrefix(kv.Key, c.nodeNumbers.cfg.Prefix):
			nodes = append(nodes, kv)
		default:
			c.claimEvent(kvstore.Event{KV: kv})
		}
	}
	for name := range c.d.nodeClaims {
		if !seen[privateKey(c.cfg.Cluster, "node", name)] {
			c.d.setNodeClaim(name, nil, clustermesh.OriginAt(time.Now()))
		}
	}
	for pod := range c.d.claims {
		if !seen[privateKey(c.cfg.Cluster, "endpoint", pod.String())] {
			c.d.setEndpointClaim(pod, nil, clustermesh.OriginAt(time.Now()))
		}
	}
	before := c.identities.texts()
	if err := c.identities.replace(identities); err != nil {
		c.log.Error("identity numbers cannot be read", "err", err)
	}
	if err := c.nodeNumbers.replace(nodes); err != nil {
		c.log.Error("node numbers cannot be read", "err", err)
	}
	at := clustermesh.OriginAt(time.Now())
	for _, text := range append(before, c.identities.texts()...) {
		c.d.touchIdentity(text, at)
	}
	for name := range c.d.nodes {
		c.d.touchNode(name, at)
		c.d.unnumberedNodes[name] = true
	}
	for text := range c.d.podsByText {
		c.d.unnumbered[text] = true
	}
	c.claimsListed = true
}

func nodeClaimFrom(value []byte) (*nodeClaim, error) {
	if value == nil {
		return nil, nil
	}
	var m pb.NodeClaim
	if err := m.UnmarshalVT(value); err != nil {
		return nil, err
	}
	underlay, err := addressesFrom(m.UnderlayAddresses)
	if err != nil {
		return nil, err
	}
	if len(m.WireguardKey) != 32 {
		return nil, fmt.Errorf("a WireGuard key of %d bytes", len(m.WireguardKey))
	}
	return &nodeClaim{underlay: underlay, key: [32]byte(m.WireguardKey), endpoint: m.WireguardEndpoint, port: uint16(m.WireguardPort), gossipKeys: m.GossipKeys, origin: clustermesh.Origin(m.Origin)}, nil
}

func endpointClaimFrom(value []byte) (*endpointClaim, error) {
	if value == nil {
		return nil, nil
	}
	var m pb.EndpointClaim
	if err := m.UnmarshalVT(value); err != nil {
		return nil, err
	}
	addrs, err := addressesFrom(m.Addresses)
	if err != nil {
		return nil, err
	}
	return &endpointClaim{node: m.Node, owner: m.Owner, addresses: addrs, ready: m.Ready, origin: clustermesh.Origin(m.Origin)}, nil
}
