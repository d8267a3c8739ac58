package sim

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// forged are records that a lying cluster's servers add to what they serve to
// other clusters: about others, and under others' names. None of them may have an
// effect anywhere, however long it goes on.
func (c *conn) forged(prefix string, at kvstore.Position) (out []kvstore.KV) {
	liar := c.to.c
	victim := liar.lies()
	if !c.peer || victim == nil || !strings.HasSuffix(prefix, "/") {
		return nil // the list of the marker alone is left as it is
	}
	add := func(key string, r clustermesh.Record) {
		value, err := clustermesh.Encode(r)
		if err != nil {
			c.s.t.Fatal(err)
		}
		out = append(out, kvstore.KV{Key: key, Value: value, CreateRevision: at.Revision, ModRevision: at.Revision})
	}
	own := func(r clustermesh.Record) { add(clustermesh.KeyOf(export, liar.Name, r).String(), r) }
	stolen := liar.Address(1, 10, 1)
	stolen.Name.Prefix = netip.PrefixFrom(victim.Pod(1, 10), 32)
	own(stolen) // "your pod is mine"
	posing := liar.Address(1, 99, 1)
	posing.Identity = clustermesh.MakeIdentity(victim.ID, 1)
	own(posing) // "my pod is yours"
	node := liar.Node(3)
	node.Name, node.Number, node.PodPrefixes, node.TunnelAddresses = "thief", 77, victim.Node(1).PodPrefixes, victim.Node(1).TunnelAddresses
	own(node) // "what is for you comes to me"
	id := victim.Identity(1)
	own(id) // "this is what your identity means"
	svc := victim.Service("always", 1)
	add(clustermesh.KeyOf(export, victim.Name, svc).String(), svc)
	add(clustermesh.KeyOf(local, liar.Name, svc).String(), svc)
	for i := range 20 {
		out = append(out, kvstore.KV{Key: fmt.Sprintf("%sflood/%d", prefix, i), Value: []byte{1, 2, 3}, CreateRevision: at.Revision, ModRevision: at.Revision})
	}
	return out
}

func (c *conn) forgedEvents(prefix string, at kvstore.Position) (out []kvstore.Event) {
	for _, kv := range c.forged(prefix, at) {
		out = append(out, kvstore.Event{KV: kv})
	}
	return out
}

// lies is whom the cluster lies about at present; nil = it does not.
func (c *cluster) lies() *cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.victim
}
