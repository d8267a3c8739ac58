package apiserver

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// gossipKeySize makes AES-256 of it.
const gossipKeySize = 32

// gossipPatience is how long a step of a rotation waits for nodes that do not say
// that they took the last one. One that is away for longer needs the mesh API
// server to find back into the gossip; until then its own probes are all it has.
const gossipPatience = time.Hour

// turnGossipKeys takes the next step of the rotation, if it is time for one:
//
//	[A] ──period over──► [A B] ──all hold A B──► [B A] ──all hold B A──► [B]
//
// The first key is the one to encrypt by. Nodes take a step one after the other,
// and any two that are at most one step apart understand each other: a key is
// used nowhere before it is known everywhere, and known for as long as it may be
// used anywhere. held is what each node says it holds; nodes that gossip by
// nothing hold nothing up. period 0 = the key is made once and stays.
func turnGossipKeys(keys *pb.GossipKeys, held map[string][]uint64, period time.Duration, now time.Time, fresh func() []byte) (next *pb.GossipKeys, changed bool) {
	add := func(list ...*pb.GossipKey) *pb.GossipKeys {
		return &pb.GossipKeys{Keys: list, Since: now.UnixNano()}
	}
	newKey := func() *pb.GossipKey { return &pb.GossipKey{Secret: fresh(), Made: now.UnixNano()} }
	since := now.Sub(time.Unix(0, keys.GetSince()))
	all := slices.DeleteFunc(slices.Clone(keys.GetKeys()), func(k *pb.GossipKey) bool { return len(k.Secret) != gossipKeySize })
	switch len(all) {
	case 0:
		return add(newKey()), true
	case 1:
		if period == 0 || since < period {
			return keys, false
		}
		return add(all[0], newKey()), true
	}
	if since < gossipPatience && !allHold(held, all[:2]) {
		return keys, false
	}
	if all[0].Made < all[1].Made {
		return add(all[1], all[0]), true
	}
	return add(all[0]), true
}

// allHold reports whether every node that holds keys holds exactly these, in order.
func allHold(held map[string][]uint64, keys []*pb.GossipKey) bool {
	for _, ids := range held {
		if len(ids) > 0 && !slices.EqualFunc(ids, keys, func(id uint64, k *pb.GossipKey) bool { return id == gossipKeyID(k.Secret) }) {
			return false
		}
	}
	return true
}

// gossipKeyID names a key without telling it.
func gossipKeyID(secret []byte) uint64 {
	sum := sha256.Sum256(secret)
	return binary.BigEndian.Uint64(sum[:])
}

func freshGossipKey() []byte {
	secret := make([]byte, gossipKeySize)
	rand.Read(secret) // never fails
	return secret
}

// gossipSecrets are the keys as nodes get them.
func gossipSecrets(keys *pb.GossipKeys) (secrets [][]byte) {
	for _, k := range keys.GetKeys() {
		if len(k.Secret) == gossipKeySize {
			secrets = append(secrets, bytes.Clone(k.Secret))
		}
	}
	return secrets
}
