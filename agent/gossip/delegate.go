package gossip

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls. Nothing in here calls memberlist back: it
// holds locks of its own.
type delegate struct{ g *Gossip }

var (
	_ memberlist.Delegate      = delegate{}
	_ memberlist.EventDelegate = delegate{}
)

// meta of a member: the life of its process, and whether it is about to leave.
func meta(life uint64, leaving bool) []byte {
	b := binary.BigEndian.AppendUint64(nil, life)
	if leaving {
		return append(b, 1)
	}
	return append(b, 0)
}

func readMeta(b []byte) (life uint64, leaving bool) {
	if len(b) != 9 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), b[8] != 0
}

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(int) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	return meta(d.g.life, d.g.leaving)
}

// NotifyMsg implements memberlist.Delegate.
func (d delegate) NotifyMsg(b []byte) {
	p, err := decode(b)
	if err != nil {
		d.g.log.Debug("a word of another agent is not understood", "err", err)
		return
	}
	d.g.mu.Lock()
	news := d.g.ledger.take(p, time.Now())
	d.g.mu.Unlock()
	if news {
		d.g.queue.QueueBroadcast(broadcast{p.key(), slices.Clone(b)})
		d.g.signal()
	}
}

// GetBroadcasts implements memberlist.Delegate.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.g.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate: all that is known, for a member that
// may have missed some.
func (d delegate) LocalState(bool) (out []byte) {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	for _, p := range d.g.ledger.all() {
		b := p.encode()
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
	}
	return out
}

// MergeRemoteState implements memberlist.Delegate.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	news := false
	defer func() {
		if news {
			d.g.signal()
		}
	}()
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	for len(b) >= 2 {
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; len(b) < n {
			return
		}
		if p, err := decode(b[:n]); err == nil {
			news = d.g.ledger.take(p, time.Now()) || news
		}
		b = b[n:]
	}
}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(n *memberlist.Node) {
	life, _ := readMeta(n.Meta)
	d.g.mu.Lock()
	d.g.ledger.joined(n.Name, life)
	d.g.count.Store(int32(len(d.g.ledger.lives)))
	d.g.mu.Unlock()
	d.g.signal()
}

// NotifyUpdate implements memberlist.EventDelegate.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.NotifyJoin(n) }

// NotifyLeave implements memberlist.EventDelegate. That a member goes on purpose
// is in its meta: memberlist keeps to itself how it knows.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	_, orderly := readMeta(n.Meta)
	d.g.mu.Lock()
	d.g.ledger.left(n.Name, orderly, time.Now())
	d.g.count.Store(int32(len(d.g.ledger.lives)))
	d.g.mu.Unlock()
	d.g.signal()
}

// broadcast is a part on its way; a newer one of the same name takes its place.
type broadcast struct {
	key  partKey
	body []byte
}

var _ memberlist.NamedBroadcast = broadcast{}

// Name implements memberlist.NamedBroadcast.
func (b broadcast) Name() string {
	return fmt.Sprintf("%s/%d/%d", b.key.prober, b.key.cluster, b.key.block)
}

// Invalidates implements memberlist.Broadcast.
func (b broadcast) Invalidates(o memberlist.Broadcast) bool {
	other, is := o.(broadcast)
	return is && other.key == b.key
}

// Message implements memberlist.Broadcast.
func (b broadcast) Message() []byte { return b.body }

// Finished implements memberlist.Broadcast.
func (broadcast) Finished() {}
