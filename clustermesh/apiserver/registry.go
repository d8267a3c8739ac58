package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// registry is the Registrar: what nodes say about themselves and their pods, each
// a record of its own under private/<cluster>/, written by compare-and-put. Any
// replica takes registrations; the leader derives what is published from them.
type registry struct {
	cfg   Config
	core  *core
	store kvstore.Store
	// published says that the store holds all it should.
	published func() bool
}

var _ Registrar = (*registry)(nil)

// attempts is how often a registration is tried again when somebody else wrote
// the same record in between.
const attempts = 5

var errBusy = Refuse(codes.Aborted, "registration not stored", "try again", "another registration of the same name came in between, several times")

var errRefilling = Refuse(codes.Unavailable, "registration not stored", "it is tried again by itself; see tombolo status if that goes on", "the cluster's records have not been published to its etcd yet")

// RegisterNode implements Registrar.
func (g *registry) RegisterNode(ctx context.Context, r NodeRegistration) (*clustermesh.Node, error) {
	if r.WireGuardKey == [32]byte{} {
		return nil, Refuse(codes.InvalidArgument, "node "+r.Node+" not registered", "send the public half of its WireGuard key", "the key is missing")
	}
	if !g.published() {
		return nil, errRefilling
	}
	if err := g.checkNode(ctx, r); err != nil {
		return nil, err
	}
	if _, err := g.core.nodeNumbers.ensure(ctx, []string{r.Node}); err != nil {
		return nil, fmt.Errorf("number of node %s: %w", r.Node, err)
	}
	claim := &nodeClaim{underlay: r.UnderlayAddresses, key: r.WireGuardKey, endpoint: r.WireGuardEndpoint, port: r.WireGuardPort, gossipKeys: r.GossipKeys, origin: clustermesh.OriginAt(time.Now())}
	if err := g.storeNode(ctx, r.Node, claim); err != nil {
		return nil, err
	}
	var node *clustermesh.Node
	var refusal *Refusal
	err := g.core.ask(ctx, func() {
		// The claim comes back through the watch; the answer must not wait for it.
		d := g.core.d
		d.nodesMoved = d.nodesMoved || d.chained() // it may have a number only now
		d.shareOut()
		if n := d.nodes[r.Node]; n != nil && n.problem != nil && len(n.prefixes) == 0 {
			refusal = Refuse(codes.FailedPrecondition, "node "+r.Node+" not registered", n.problem.Fix, "%s: %s", n.problem.What, n.problem.Why)
		}
		old := d.nodeClaims[r.Node]
		d.nodeClaims[r.Node] = claim
		node = g.core.d.nodeRecord(r.Node, claim.origin)
		if g.core.d.nodeClaims[r.Node] = old; old == nil {
			delete(g.core.d.nodeClaims, r.Node)
		}
	})
	if err == nil && node == nil {
		return nil, unknownNode(r.Node)
	}
	if err := errors.Join(err, asError(refusal)); err != nil {
		return nil, err
	}
	return node, nil
}

func unknownNode(name string) *Refusal {
	return Refuse(codes.NotFound, "node "+name+" not registered", "add a Node of that name with spec.podCIDRs to the source, or correct the name", "the source has no Node %s", name)
}

func (g *registry) checkNode(ctx context.Context, r NodeRegistration) error {
	var refusal *Refusal
	err := g.core.ask(ctx, func() {
		d := g.core.d
		d.shareOut()
		n := d.nodes[r.Node]
		if n == nil {
			refusal = unknownNode(r.Node)
			return
		}
		if n.problem != nil && len(n.prefixes) == 0 {
			refusal = Refuse(codes.FailedPrecondition, "node "+r.Node+" not registered", n.problem.Fix, "%s: %s", n.problem.What, n.problem.Why)
			return
		}
		for other, c := range d.nodeClaims {
			if other != r.Node && c.key == r.WireGuardKey && d.nodes[other] != nil {
				refusal = Refuse(codes.AlreadyExists, "node "+r.Node+" not registered", "give each node a state directory of its own; one was copied", "node %s has the same WireGuard key", other)
			}
		}
	})
	return errors.Join(err, asError(refusal))
}

// asError keeps a nil *Refusal from becoming an error that is not nil.
func asError(r *Refusal) error {
	if r == nil {
		return nil
	}
	return r
}

func (g *registry) storeNode(ctx context.Context, name string, c *nodeClaim) error {
	key := privateKey(g.cfg.Cluster, "node", name)
	m := &pb.NodeClaim{WireguardKey: c.key[:], WireguardEndpoint: c.endpoint, WireguardPort: uint32(c.port), GossipKeys: c.gossipKeys, Origin: int64(c.origin)}
	for _, a := range c.underlay {
		m.UnderlayAddresses = append(m.UnderlayAddresses, a.Unmap().AsSlice())
	}
	for range attempts {
		old, err := getKey(ctx, g.store, key)
		if err != nil {
			return err
		}
		var before pb.NodeClaim
		if old.Key != "" && before.UnmarshalVT(old.Value) == nil {
			origin := m.Origin
			m.Origin = before.Origin
			if same(m, &before) {
				c.origin = clustermesh.Origin(before.Origin)
				return nil
			}
			m.Origin = origin
		}
		if done, err := g.commit(ctx, key, old.ModRevision, m); done {
			return err
		}
	}
	return errBusy
}

type claimMessage interface{ MarshalVT() ([]byte, error) }

func same(a, b claimMessage) bool {
	x, errX := a.MarshalVT()
	y, errY := b.MarshalVT()
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// commit writes one record if it is still as it was at rev; done is false if it
// is not. more goes into the same commit.
func (g *registry) commit(ctx context.Context, key string, rev int64, m claimMessage, more ...kvstore.Op) (done bool, err error) {
	value, err := m.MarshalVT()
	if err != nil {
		return true, err
	}
	ops := append([]kvstore.Op{kvstore.IfModRevision(key, rev), kvstore.Put(key, value, 0)}, more...)
	_, err = g.store.Commit(ctx, ops...)
	return !errors.Is(err, kvstore.ErrConflict), err
}

// RegisterEndpoint implements Registrar.
func (g *registry) RegisterEndpoint(ctx context.Context, r EndpointRegistration) (clustermesh.Identity, error) {
	pod := objectName{r.Namespace, r.Pod}
	what := "pod " + pod.String() + " not registered"
	if r.Owner == "" {
		return 0, Refuse(codes.InvalidArgument, what, "send the UID of the pod", "the owner is missing")
	}
	if !g.published() {
		return 0, errRefilling
	}
	if r.Remove {
		return 0, g.removeEndpoint(ctx, pod, r)
	}
	for i, a := range r.Addresses {
		r.Addresses[i] = a.Unmap()
	}
	text, evict, err := g.checkEndpoint(ctx, what, pod, r)
	if err != nil {
		return 0, err
	}
	var number uint32
	if text != "" {
		if _, err := g.core.identities.ensure(ctx, []string{text}); err != nil && !errors.Is(err, errNumbersUsedUp) {
			return 0, fmt.Errorf("identity of pod %s: %w", pod, err)
		}
		number, _ = g.core.identities.lookup(text)
	}
	if err := g.storeEndpoint(ctx, pod, r, evict); err != nil {
		return 0, err
	}
	if text == "" {
		return clustermesh.IdentityRemoteNode, nil
	}
	return clustermesh.MakeIdentity(g.cfg.ID, number), nil
}

// checkEndpoint holds a registration against the source. text is the label text
// of the pod's identity, "" if it has its node's; evict are earlier pods of the
// node whose addresses it has now.
func (g *registry) checkEndpoint(ctx context.Context, what string, pod objectName, r EndpointRegistration) (text string, evict []objectName, err error) {
	var refusal *Refusal
	err = g.core.ask(ctx, func() {
		d := g.core.d
		d.shareOut()
		st, n := d.pods[pod], d.nodes[r.Node]
		switch {
		case n == nil:
			refusal = unknownNode(r.Node)
			refusal.What = what
		case st == nil:
			refusal = Refuse(codes.NotFound, what, "add the Pod to the source first", "the source has no Pod %s", pod)
		case st.pod.Spec.NodeName != r.Node:
			refusal = Refuse(codes.PermissionDenied, what, "register it from its own node, or correct spec.nodeName", "the source assigns it to node %q, not to %q", st.pod.Spec.NodeName, r.Node)
		case st.pod.UID != "" && string(st.pod.UID) != r.Owner:
			refusal = Refuse(codes.FailedPrecondition, what, "remove the former pod and add the present one", "the source's pod has UID %s, the registration is of %s", st.pod.UID, printable(r.Owner))
		case st.pod.Spec.HostNetwork && len(r.Addresses) > 0:
			refusal = Refuse(codes.InvalidArgument, what, "register it without addresses", "it is on its node's network")
		case !st.pod.Spec.HostNetwork && len(r.Addresses) == 0:
			refusal = Refuse(codes.InvalidArgument, what, "send the pod's addresses", "the registration has none")
		case len(r.Addresses) > 8:
			refusal = Refuse(codes.InvalidArgument, what, "send one address of each family", "%d addresses are too many", len(r.Addresses))
		}
		if refusal != nil {
			return
		}
		for _, a := range r.Addresses {
			if bad := d.ownAddress(n, a); bad != nil {
				fix := "give the pod a free address of its node's prefixes"
				if d.chained() {
					fix = "give the mesh API server the prefixes that the other CNI takes pods' addresses from (--pod-prefix)"
				}
				refusal = Refuse(codes.InvalidArgument, what, fix, "%v", bad)
				return
			}
			if other, taken := d.takenBy(a, r.Node); d.chained() && taken {
				refusal = Refuse(codes.AlreadyExists, what, "wait until the other pod is gone, or see why the other CNI gave the address twice", "%s is the address of pod %s on node %s", a, other, d.pods[other].pod.Spec.NodeName)
				return
			}
			// The node gives out its addresses: an earlier pod that has one of them is gone.
			for other, c := range d.claimsByAddress[a] {
				if other != pod && c.node == r.Node && !slices.Contains(evict, other) {
					evict = append(evict, other)
				}
			}
		}
		text = st.text
	})
	return text, evict, errors.Join(err, asError(refusal))
}

func (g *registry) endpointKey(pod objectName) string {
	return privateKey(g.cfg.Cluster, "endpoint", pod.String())
}

func (g *registry) storeEndpoint(ctx context.Context, pod objectName, r EndpointRegistration, evict []objectName) error {
	key := g.endpointKey(pod)
	m := &pb.EndpointClaim{Node: r.Node, Owner: r.Owner, Ready: r.Ready, Addresses: addressBytes(r.Addresses)}
	var more []kvstore.Op
	for _, other := range evict[:min(len(evict), 16)] {
		more = append(more, kvstore.Delete(g.endpointKey(other)))
	}
	for range attempts {
		old, err := getKey(ctx, g.store, key)
		if err != nil {
			return err
		}
		var before pb.EndpointClaim
		if old.Key != "" && before.UnmarshalVT(old.Value) == nil {
			if m.Origin = before.Origin; same(m, &before) && len(more) == 0 {
				return nil
			}
		}
		m.Origin = time.Now().UnixNano()
		if done, err := g.commit(ctx, key, old.ModRevision, m, more...); done {
			return err
		}
	}
	return errBusy
}

// removeEndpoint deletes what this owner wrote; that there is nothing (any more),
// or what another owner wrote, is no error.
func (g *registry) removeEndpoint(ctx context.Context, pod objectName, r EndpointRegistration) error {
	key := g.endpointKey(pod)
	for range attempts {
		old, err := getKey(ctx, g.store, key)
		if err != nil || old.Key == "" {
			return err
		}
		var before pb.EndpointClaim
		if before.UnmarshalVT(old.Value) == nil {
			if before.Owner != r.Owner {
				return nil
			}
			if before.Node != r.Node {
				return Refuse(codes.PermissionDenied, "pod "+pod.String()+" not removed", "remove it from its own node", "node %q registered it, not %q", before.Node, r.Node)
			}
		}
		_, err = g.store.Commit(ctx, kvstore.IfModRevision(key, old.ModRevision), kvstore.Delete(key))
		if !errors.Is(err, kvstore.ErrConflict) {
			return err
		}
	}
	return errBusy
}

func addressBytes(addrs []netip.Addr) [][]byte {
	var all [][]byte
	for _, a := range addrs {
		all = append(all, a.Unmap().AsSlice())
	}
	return all
}

func addressesFrom(all [][]byte) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, b := range all {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, fmt.Errorf("an address of %d bytes", len(b))
		}
		addrs = append(addrs, a.Unmap())
	}
	return addrs, nil
}
