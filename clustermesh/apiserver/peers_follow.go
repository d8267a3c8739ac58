package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

// What a peer's mesh API server announces about itself, export/<peer>/cluster,
// is followed by this one. It says whether the peer can be reached, and it is
// how the peer's CA bundle and addresses roll over: believed because the
// connection was verified against the bundle that stands so far.

// contact is what is known of one peer's mesh port.
type contact struct {
	stop   context.CancelFunc
	dialed string // addresses in use and what the peer was admitted for, to notice a change

	mu        sync.Mutex
	reachable bool
	err       error
	seen      time.Time
	since     time.Time            // of the present loss
	problem   string               // why its cluster record is not believed
	said      *clustermesh.Cluster // its cluster record; nil = not heard yet
}

// What a peer announces is taken over so often at a time, and then once in
// announceEvery: each change is a write here and a new connection of every agent.
const (
	announceBurst = 5
	announceEvery = 10 * time.Second
)

// contacts are all of them, by cluster.
type contacts struct {
	mu     sync.Mutex
	all    map[string]*contact
	limits map[string]*rate.Limiter // of announcements; outlive a contact, not a peer
}

// limit is that of a peer's announcements.
func (cs *contacts) limit(name string) *rate.Limiter {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.limits == nil {
		cs.limits = make(map[string]*rate.Limiter)
	}
	if cs.limits[name] == nil {
		cs.limits[name] = rate.NewLimiter(rate.Every(announceEvery), announceBurst)
	}
	return cs.limits[name]
}

func (cs *contacts) get(name string) *contact {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.all[name]
}

// followPeers keeps one follower per peer until ctx ends.
func (p *Port) followPeers(ctx context.Context) {
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	p.peers.OnChange(notify)
	notify()
	var running sync.WaitGroup
	defer running.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			p.matchContacts(ctx, &running)
		}
	}
}

// matchContacts starts and stops followers so that they match the peers.
func (p *Port) matchContacts(ctx context.Context, running *sync.WaitGroup) {
	cs := &p.contacts
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if p.cfg.Exports != nil {
		p.cfg.Exports.SetPeers(p.peers.List())
	}
	wanted := make(map[string]*clustermesh.Peer)
	for _, peer := range p.peers.List() {
		wanted[peer.Name] = peer
	}
	for name, c := range cs.all {
		if peer := wanted[name]; peer == nil || admittedText(peer) != c.dialed {
			c.stop()
			delete(cs.all, name)
			if peer == nil {
				delete(cs.limits, name)
			}
		}
	}
	for name, peer := range wanted {
		if cs.all[name] != nil {
			continue
		}
		own, stop := context.WithCancel(ctx)
		c := &contact{stop: stop, dialed: admittedText(peer), err: errNotYetReached}
		cs.all[name] = c
		running.Go(func() { p.followPeer(own, peer, c) })
	}
}

var errNotYetReached = errors.New("not reached yet")

func addressesText(p *clustermesh.Peer) string { return fmt.Sprint(p.MeshAddresses) }

func admittedText(p *clustermesh.Peer) string {
	return fmt.Sprint(p.MeshAddresses, p.ID, p.PodPrefixes, p.MaxKeys, p.MaxBytes)
}

// followPeer follows one peer's cluster record until ctx ends.
func (p *Port) followPeer(ctx context.Context, peer *clustermesh.Peer, c *contact) {
	stores, closeAll, err := etcd.Replicas(ctx, etcd.Config{
		Endpoints: peer.MeshAddresses, Log: p.log,
		TLS: certs.ClientTLS(p.cfg.Leaf, p.cfg.Bundles, certs.APIServer(peer.Name)),
	})
	if err != nil {
		c.lost(err)
		return
	}
	defer closeAll()
	if x := p.cfg.Exports; x != nil {
		var exports sync.WaitGroup
		defer exports.Wait() // before the connections are closed
		exports.Go(func() { x.followPeer(ctx, peer, stores) })
	}
	key := clustermesh.ClusterKey(clustermesh.ScopeExport, peer.Name)
	sink := &contactSink{port: p, contact: c, ctx: ctx, peer: peer.Name, key: key}
	err = kvstore.Follow(ctx, kvstore.FollowConfig{Stores: stores, Prefix: key, Sink: sink, Log: p.log})
	if err != nil && ctx.Err() == nil {
		c.lost(err)
	}
}

// contactSink hears what a peer announces.
type contactSink struct {
	port    *Port
	contact *contact
	ctx     context.Context
	peer    string
	key     string
}

func (s *contactSink) Begin(kvstore.Position, []byte) error {
	s.contact.met(s.port.cfg.Now())
	return nil
}
func (s *contactSink) Synced(kvstore.Position) { s.contact.met(s.port.cfg.Now()) }
func (s *contactSink) Lost(err error)          { s.contact.lost(err) }

func (s *contactSink) Apply(_ kvstore.Position, events []kvstore.Event) error {
	s.contact.met(s.port.cfg.Now())
	for _, e := range events {
		if e.Delete || e.KV.Key != s.key {
			continue // silence, and a record that is gone, change nothing
		}
		err := s.port.announced(s.ctx, s.peer, e.KV)
		s.contact.believe(err)
		if err != nil {
			s.port.log.Warn("what a peer announces about itself is not believed", "peer", s.peer, "err", err)
		}
	}
	return nil
}

func (c *contact) met(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reachable, c.err, c.seen = true, nil, now
}

func (c *contact) lost(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reachable || c.since.IsZero() {
		c.since = time.Now()
	}
	c.reachable, c.err = false, err
}

func (c *contact) believe(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problem = ""
	if err != nil {
		c.problem = printable(err.Error())
	}
}

// announced takes a peer's new CA bundle and addresses over into its record.
// All else that it was admitted for stays the operator's word.
func (p *Port) announced(ctx context.Context, name string, kv kvstore.KV) error {
	key, err := clustermesh.ParseKey(kv.Key)
	if err != nil {
		return err
	}
	rec, err := clustermesh.Decode(key, kv.Value)
	if err != nil {
		return err
	}
	said, ok := rec.(*clustermesh.Cluster)
	if !ok || said.Name != name {
		return fmt.Errorf("the record is not that of cluster %s", name)
	}
	if c := p.contacts.get(name); c != nil {
		c.mu.Lock()
		c.said = said
		c.mu.Unlock()
	}
	next, rev, err := p.rolledOver(ctx, name, said)
	if err != nil || next == nil {
		return err
	}
	if wait := p.contacts.limit(name).Reserve().Delay(); wait > 0 {
		if pause(ctx, wait); ctx.Err() != nil {
			return ctx.Err()
		}
		if next, rev, err = p.rolledOver(ctx, name, said); err != nil || next == nil {
			return err
		}
	}
	next.Origin = clustermesh.OriginAt(p.cfg.Now())
	err = p.peers.set(ctx, next, rev)
	if errors.Is(err, kvstore.ErrConflict) {
		return nil // another replica was faster
	}
	if err == nil {
		p.log.Info("peer rolled its CA bundle or addresses over", "peer", name, "fingerprints", fingerprints(next.CABundle))
	}
	return err
}

// rolledOver is the record of a peer with what it says now, and the revision of
// the present one; nil if nothing is new, or the peer was just removed.
func (p *Port) rolledOver(ctx context.Context, name string, said *clustermesh.Cluster) (*clustermesh.Peer, int64, error) {
	present, err := p.peers.read(ctx)
	if err != nil {
		return nil, 0, err
	}
	e, ok := present[name]
	if !ok {
		return nil, 0, nil
	}
	if said.ID != e.peer.ID {
		return nil, 0, fmt.Errorf("it says its ID is %d, and it was admitted with %d; remove it and join again", said.ID, e.peer.ID)
	}
	next := *e.peer
	if len(said.CABundle) > 0 && !bytes.Equal(said.CABundle, next.CABundle) {
		if err := p.admitBundle(name, said.CABundle, present); err != nil {
			return nil, 0, err
		}
		next.CABundle = said.CABundle
	}
	if checkMeshAddresses(said.MeshAddresses) == nil {
		next.MeshAddresses = said.MeshAddresses
	}
	if bytes.Equal(next.CABundle, e.peer.CABundle) && slices.Equal(next.MeshAddresses, e.peer.MeshAddresses) {
		return nil, 0, nil
	}
	return &next, e.rev, nil
}

// admitBundle refuses a new bundle that holds a CA of somebody else.
func (p *Port) admitBundle(name string, bundle []byte, present map[string]peerEntry) error {
	if err := certs.NewBundles().Set(name, bundle); err != nil {
		return err
	}
	others := map[string][]byte{p.own: p.ca().Bundle()}
	for other, e := range present {
		if other != name {
			others[other] = e.peer.CABundle
		}
	}
	for _, other := range slices.Sorted(maps.Keys(others)) {
		if root := certs.SharedRoot(others[other], bundle); root != nil {
			return fmt.Errorf("its new CA bundle holds a CA of cluster %s (fingerprint %s)", other, certs.Fingerprint(root))
		}
	}
	return nil
}

// PeerStatus is what is known of every peer, by name.
func (p *Port) PeerStatus() []*pb.PeerStatus {
	var out []*pb.PeerStatus
	for _, peer := range p.peers.List() {
		s := &pb.PeerStatus{Peer: peerToPB(peer), Fingerprint: fingerprints(peer.CABundle), Readers: int64(p.conns.readers(peer.Name))}
		if c := p.contacts.get(peer.Name); c != nil {
			c.mu.Lock()
			s.Reachable = c.reachable
			if c.err != nil {
				s.Error = printable(c.err.Error())
			}
			if c.reachable {
				c.seen = p.cfg.Now()
			}
			s.LastSeen = unixNano(c.seen)
			c.mu.Unlock()
		}
		out = append(out, s)
	}
	return out
}

// Problems are those of the port: peers that cannot be reached or are not
// believed, and a certificate about to end.
func (p *Port) Problems() []Problem {
	out := p.peers.Problems()
	if q := p.caProblem.Load(); q != nil {
		out = append(out, *q)
	}
	gateways := p.cfg.Own().Topology == clustermesh.TopologyGateway
	for _, peer := range p.peers.List() {
		c := p.contacts.get(peer.Name)
		if c == nil {
			continue
		}
		object := "peer " + peer.Name
		c.mu.Lock()
		if c.problem != "" {
			out = append(out, Problem{Object: object, What: "its cluster record is not believed; what was known stays in force", Why: c.problem,
				Fix: "correct that cluster's settings, or tombolo mesh remove " + peer.Name})
		}
		if gateways && c.said != nil && !slices.Contains(c.said.Capabilities, clustermesh.CapabilityGateway) {
			out = append(out, Problem{Object: object, What: "nodes of this cluster that are behind gateways do not reach it, nor it them",
				Why: fmt.Sprintf("the topology of this cluster is gateway, and the version of that one (%s) does not know it", printable(c.said.Version)),
				Fix: "upgrade its mesh API server and agents, or set the topology of this cluster to mesh"})
		}
		if !c.reachable && !errors.Is(c.err, errNotYetReached) {
			out = append(out, Problem{Object: object, What: "its mesh port cannot be reached; traffic is not affected", Why: printable(c.err.Error()), Since: c.since,
				Fix: "repair the connection to " + addressesText(peer) + ", or tombolo mesh remove " + peer.Name + " --force"})
		}
		c.mu.Unlock()
	}
	if ends := p.cfg.Leaf.Expires(); p.cfg.Now().After(ends) {
		out = append(out, Problem{Object: "mesh port", What: "its certificate expired", Why: "renewal failed; it ended on " + timeText(ends),
			Fix: "see the log for the reason: the CA may have expired, or its files cannot be written"})
	}
	sortProblems(out)
	return out
}
