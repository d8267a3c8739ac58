package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// introduction is a note in the store, private/<own>/joining/<cluster>, that
// the cluster is about to join, for every replica to see. Without Bundle it
// goes by itself after a minute. With Bundle it is a promise: we asked the
// other side to commit, and it may have stored us before we stored it.
type introduction struct {
	Fingerprint string    `json:"fingerprint"`
	Bundle      []byte    `json:"bundle,omitempty"`
	Addresses   []string  `json:"addresses,omitempty"`
	Since       time.Time `json:"since"`
}

const introductionTTL = time.Minute

func (p *Port) introductionKey(cluster string) string { return privateKey(p.own, "joining", cluster) }

// introduce writes the note.
func (p *Port) introduce(ctx context.Context, cluster string, note introduction) error {
	note.Since = p.cfg.Now()
	value, err := json.Marshal(note)
	if err != nil {
		return err
	}
	var lease int64
	if note.Bundle == nil {
		l, err := p.cfg.Store.Grant(ctx, introductionTTL)
		if err != nil {
			return err
		}
		lease = l.ID()
	}
	_, err = p.cfg.Store.Commit(ctx, kvstore.Put(p.introductionKey(cluster), value, lease))
	return err
}

// introduction reads the note; nil if there is none.
func (p *Port) introduction(ctx context.Context, cluster string) (*introduction, kvstore.KV, error) {
	kv, err := getKey(ctx, p.cfg.Store, p.introductionKey(cluster))
	if err != nil || kv.Key == "" {
		return nil, kv, err
	}
	note := new(introduction)
	return note, kv, json.Unmarshal(kv.Value, note)
}

func (p *Port) forgetIntroduction(ctx context.Context, cluster string) error {
	_, err := p.cfg.Store.Commit(ctx, kvstore.Delete(p.introductionKey(cluster)))
	return err
}

// halfJoinAge is how old a promise must be before it counts as broken: longer
// than any join takes.
const halfJoinAge = 2 * joinTimeout

// undoHalfJoins looks for promises that a crash left behind, and takes this
// cluster out of the other one again. Asking again with the same token works
// as well, until it expires.
func (p *Port) undoHalfJoins(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := p.undoHalfJoinsOnce(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("a half-finished join is not undone yet", "err", err)
		}
		timer.Reset(halfJoinAge)
	}
}

func (p *Port) undoHalfJoinsOnce(ctx context.Context) error {
	prefix := p.introductionKey("")
	var notes []kvstore.KV
	_, err := p.cfg.Store.List(ctx, prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		notes = append(notes, kvs...)
		return nil
	})
	if err != nil {
		return err
	}
	present, err := p.peers.read(ctx)
	if err != nil {
		return err
	}
	for _, kv := range notes {
		var note introduction
		cluster := strings.TrimPrefix(kv.Key, prefix)
		if json.Unmarshal(kv.Value, &note) != nil || note.Bundle == nil || p.cfg.Now().Sub(note.Since) < halfJoinAge {
			continue
		}
		if _, joined := present[cluster]; !joined {
			err = errors.Join(err, p.undo(ctx, cluster, note.Addresses, note.Bundle))
			if err != nil {
				continue
			}
			p.log.Info("half-finished join undone", "cluster", cluster)
		}
		_, delErr := p.cfg.Store.Commit(ctx, kvstore.IfModRevision(kv.Key, kv.ModRevision), kvstore.Delete(kv.Key))
		err = errors.Join(err, delErr)
	}
	return err
}

// undo takes this cluster out of another one. A side that does not know us is
// as good as one that let us go.
func (p *Port) undo(ctx context.Context, cluster string, addrs []string, bundle []byte) error {
	conn, err := dialMesh(ctx, addrs, certs.BundleTLS(p.cfg.Leaf, bundle, certs.APIServer(cluster)))
	if err != nil {
		return fmt.Errorf("cluster %s: %w", cluster, err)
	}
	defer conn.close()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := conn.Leave(ctx, &pb.LeaveRequest{}); err != nil && !notKnownThere(err) {
		return fmt.Errorf("cluster %s: %w", cluster, err)
	}
	return nil
}

// peerOf is the record of a candidate as it goes into the store.
func promiseOf(c *clustermesh.Cluster, fingerprint string) introduction {
	return introduction{Fingerprint: fingerprint, Bundle: c.CABundle, Addresses: c.MeshAddresses}
}
