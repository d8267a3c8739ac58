package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Drains are the operator's word, like peers: this alone writes them, by
// compare-and-put, so that any replica can. Of another cluster it is for this
// cluster's agents (local/<own>/drain/<other>…), of the own one for everybody
// (export/<own>/drain/<own>…).

// drainCall is what was asked for.
type drainCall struct {
	cluster string
	service clustermesh.ServiceName // zero = all
	over    time.Duration
	back    bool
	by      string
}

func (c drainCall) what() string {
	if c.back {
		return "undrain refused"
	}
	return "drain refused"
}

// object is what is drained, in words.
func (c drainCall) object() string {
	if c.service == (clustermesh.ServiceName{}) {
		return "cluster " + c.cluster
	}
	return "service " + c.service.String() + " of cluster " + c.cluster
}

func (a *Admin) Drain(ctx context.Context, req *pb.DrainRequest) (*pb.DrainResponse, error) {
	call := drainCall{cluster: req.Cluster, over: time.Duration(req.Over), back: req.Back, by: req.By}
	if req.Service != "" {
		ns, name, ok := strings.Cut(req.Service, "/")
		if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
			return nil, Refuse(codes.InvalidArgument, call.what(), "name it as NAMESPACE/NAME", "%s is no service", quoted(req.Service))
		}
		call.service = clustermesh.ServiceName{Namespace: ns, Name: name}
	}
	r, warning, err := a.cfg.Port.Drain(ctx, call)
	if err != nil {
		return nil, err
	}
	return &pb.DrainResponse{Drain: a.cfg.Port.drainStatus(r), Warning: warning}, nil
}

// Drain writes that a cluster shall get no new connections, or that it gets them
// again, and returns the record; Left of one that was taken away is all.
func (p *Port) Drain(ctx context.Context, call drainCall) (r *clustermesh.Drain, warning string, err error) {
	if err := p.checkDrain(ctx, call); err != nil {
		return nil, "", err
	}
	for range attempts {
		r, warning, err = p.drainOnce(ctx, call)
		if !errors.Is(err, kvstore.ErrConflict) {
			return r, warning, err
		}
	}
	return nil, "", Refuse(codes.Aborted, call.what(), "try again", "others changed it %d times meanwhile", attempts)
}

func (p *Port) checkDrain(ctx context.Context, call drainCall) error {
	bad := func(fix, why string, args ...any) error {
		return Refuse(codes.InvalidArgument, call.what(), fix, why, args...)
	}
	if err := clustermesh.ValidateClusterName(call.cluster); err != nil {
		return bad("name a cluster, as `tombolo mesh list` shows them, or "+p.own, "%v", err)
	}
	if call.over < 0 || call.over > clustermesh.MaxDrain {
		return bad(fmt.Sprintf("give --over from 0s to %v", clustermesh.MaxDrain), "%v is no time to do that in", call.over)
	}
	if call.back || call.service == (clustermesh.ServiceName{}) {
		return nil // what is gone may be undrained
	}
	return p.checkDrainService(ctx, call)
}

// checkDrainService: one that is not global has no other cluster to go to.
func (p *Port) checkDrainService(ctx context.Context, call drainCall) error {
	var found *clustermesh.Service
	for _, scope := range []clustermesh.Scope{clustermesh.ScopeExport, clustermesh.ScopeLocal} {
		key := clustermesh.Key{Scope: scope, Cluster: p.own, Kind: clustermesh.KindService, Name: call.service.String()}
		if err := key.Validate(); err != nil {
			return Refuse(codes.InvalidArgument, call.what(), "name it as NAMESPACE/NAME", "%v", err)
		}
		kv, err := getKey(ctx, p.cfg.Store, key.String())
		if err != nil {
			return err
		}
		if kv.Key == "" {
			continue
		}
		rec, err := clustermesh.Decode(key, kv.Value)
		if err != nil {
			return err
		}
		found = rec.(*clustermesh.Service)
		break
	}
	switch {
	case found == nil:
		return Refuse(codes.NotFound, call.what(), "see `tombolo service list`", "cluster %s has no service %s", p.own, call.service)
	case !found.Global && found.Export == nil && found.Import == "":
		return Refuse(codes.FailedPrecondition, call.what(), "annotate it with tombolo.io/global: \"true\" in each cluster that has it, or scale it down",
			"service %s is not global: its clients have no other cluster to go to", call.service)
	}
	return nil
}

func (p *Port) drainOnce(ctx context.Context, call drainCall) (*clustermesh.Drain, string, error) {
	now := p.cfg.Now()
	r := &clustermesh.Drain{Cluster: call.cluster, Service: call.service, Start: now, Over: call.over, From: clustermesh.ShareAll, Back: call.back, By: printable(call.by), Origin: clustermesh.OriginAt(now)}
	key := p.drainKey(r).String()
	old, rev, err := p.readDrain(ctx, key)
	unreadable := err != nil && rev != 0
	if err != nil && !(unreadable && call.back) {
		return nil, "", err
	}
	there, known, err := p.drainPeer(ctx, call, rev != 0)
	if err != nil {
		return nil, "", err
	}
	drained := old != nil && (!old.Back || old.Left(now) != clustermesh.ShareAll)
	if drained {
		r.From = old.Left(now)
	}
	if err := p.refuseDrain(call, old, drained || unreadable, now); err != nil {
		return nil, "", err
	}
	ops := append(there, kvstore.IfModRevision(key, rev))
	if call.back && (call.over == 0 || unreadable || !known) {
		r.Over = 0
		ops = append(ops, kvstore.Delete(key))
	} else {
		value, err := clustermesh.Encode(r)
		if err != nil {
			return nil, "", err
		}
		ops = append(ops, kvstore.Put(key, value, 0))
	}
	finished, err := p.finishedDrains(ctx, key, now)
	if err != nil {
		return nil, "", err
	}
	if _, err := p.cfg.Store.Commit(ctx, append(ops, finished...)...); err != nil {
		return nil, "", err
	}
	p.log.Info("drain written", "cluster", call.cluster, "service", call.service.String(), "back", call.back, "over", call.over, "by", r.By)
	return r, p.drainWarning(ctx, call, old, drained), nil
}

// drainPeer reports whether the cluster is the own one or a peer, and returns what
// holds while that is so: a drain that is written while its peer is removed would
// be there for ever. A drain of one that is gone may still be lifted.
func (p *Port) drainPeer(ctx context.Context, call drainCall, exists bool) (while []kvstore.Op, known bool, err error) {
	if call.cluster == p.own {
		return nil, true, nil
	}
	kv, err := getKey(ctx, p.cfg.Store, p.peers.prefix()+call.cluster)
	switch {
	case err != nil:
		return nil, false, err
	case kv.Key != "":
		return []kvstore.Op{kvstore.IfModRevision(kv.Key, kv.ModRevision)}, true, nil
	case call.back && exists:
		return nil, false, nil
	}
	return nil, false, Refuse(codes.NotFound, call.what(), "see `tombolo mesh list`", "cluster %s is neither %s nor a peer of it", call.cluster, p.own)
}

// refuseDrain refuses what is so already.
func (p *Port) refuseDrain(call drainCall, old *clustermesh.Drain, drained bool, now time.Time) error {
	switch {
	case call.back && !drained && call.cluster == p.own:
		return Refuse(codes.FailedPrecondition, call.what(), "see `tombolo mesh status`", "%s is not drained", call.object())
	case call.back && !drained:
		return Refuse(codes.FailedPrecondition, call.what(), fmt.Sprintf("see `tombolo mesh status`; if `tombolo status` says that %s drained itself, undrain it there", call.cluster),
			"%s is not drained by this cluster", call.object())
	case !call.back && drained && !old.Back && old.Left(now) == 0:
		return Refuse(codes.AlreadyExists, call.what(), "nothing, if that is meant; `tombolo mesh undrain` brings it back", "%s has been drained since %s", call.object(), timeText(old.Done()))
	}
	return nil
}

// drainWarning is what the operator should know, though it was done. That it took
// effect stands, also when what else is drained cannot be found out. What peers say
// of themselves only the agents read.
func (p *Port) drainWarning(ctx context.Context, call drainCall, old *clustermesh.Drain, drained bool) string {
	if call.back {
		return ""
	}
	if drained && !old.Back {
		return fmt.Sprintf("%s was being drained already, over %v; what is left goes over %v now", call.object(), old.Over, call.over)
	}
	all, err := p.drains(ctx, p.cfg.Store)
	present, err2 := p.peers.read(ctx)
	if err := errors.Join(err, err2); err != nil {
		return fmt.Sprintf("it is in force, but whether a cluster is left that is not drained could not be found out (%v): see `tombolo mesh status`", err)
	}
	rest := []string{p.own}
	for name := range present {
		rest = append(rest, name)
	}
	for _, d := range all {
		if !d.Back && (d.Service == (clustermesh.ServiceName{}) || d.Service == call.service) {
			rest = slices.DeleteFunc(rest, func(name string) bool { return name == d.Cluster })
		}
	}
	if len(rest) == 0 {
		return "no cluster is left that is not drained: as long as that is so, traffic goes on to the drained ones"
	}
	return ""
}

func (p *Port) drainKey(r *clustermesh.Drain) clustermesh.Key {
	scope := clustermesh.ScopeLocal
	if r.Cluster == p.own {
		scope = clustermesh.ScopeExport
	}
	return clustermesh.KeyOf(scope, p.own, r)
}

func (p *Port) readDrain(ctx context.Context, key string) (*clustermesh.Drain, int64, error) {
	kv, err := getKey(ctx, p.cfg.Store, key)
	if err != nil || kv.Key == "" {
		return nil, 0, err
	}
	r, err := decodeDrain(kv)
	return r, kv.ModRevision, err
}

func decodeDrain(kv kvstore.KV) (*clustermesh.Drain, error) {
	key, err := clustermesh.ParseKey(kv.Key)
	if err != nil {
		return nil, err
	}
	rec, err := clustermesh.Decode(key, kv.Value)
	if err != nil {
		return nil, err
	}
	r, is := rec.(*clustermesh.Drain)
	if !is {
		return nil, fmt.Errorf("record %s is not a drain", kv.Key)
	}
	return r, nil
}

// drainPrefixes are where the records of drains are.
func drainPrefixes(own string) []string {
	return []string{
		clustermesh.KindPrefix(clustermesh.ScopeExport, own, clustermesh.KindDrain),
		clustermesh.KindPrefix(clustermesh.ScopeLocal, own, clustermesh.KindDrain),
	}
}

// drains are those in force, and those that are on their way back, by key. What
// cannot be read is left out: the agents say that they refuse it.
func (p *Port) drains(ctx context.Context, store kvstore.Store) ([]*clustermesh.Drain, error) {
	now := p.cfg.Now()
	var out []*clustermesh.Drain
	err := p.eachDrain(ctx, store, func(kv kvstore.KV, r *clustermesh.Drain) {
		if !r.Back || r.Left(now) != clustermesh.ShareAll {
			out = append(out, r)
		}
	})
	return out, err
}

func (p *Port) eachDrain(ctx context.Context, store kvstore.Store, do func(kvstore.KV, *clustermesh.Drain)) error {
	for _, prefix := range drainPrefixes(p.own) {
		_, err := store.List(ctx, prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
			for _, kv := range kvs {
				if r, err := decodeDrain(kv); err == nil {
					do(kv, r)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// finishedDrains deletes a few records of clusters that are back in full. They
// say nothing any more; but another key is about to be written.
func (p *Port) finishedDrains(ctx context.Context, but string, now time.Time) (ops []kvstore.Op, err error) {
	err = p.eachDrain(ctx, p.cfg.Store, func(kv kvstore.KV, r *clustermesh.Drain) {
		if kv.Key != but && r.Back && r.Left(now) == clustermesh.ShareAll && len(ops) < kvstore.MaxOps/2 {
			ops = append(ops, kvstore.IfModRevision(kv.Key, kv.ModRevision), kvstore.Delete(kv.Key))
		}
	})
	return ops, err
}

// drainStatus is a drain as it stands, for the operator.
func (p *Port) drainStatus(r *clustermesh.Drain) *pb.DrainStatus {
	s := &pb.DrainStatus{Cluster: r.Cluster, Drain: r.Message(), Left: uint32(r.Left(p.cfg.Now())), ByItself: r.Cluster == p.own}
	if r.Service != (clustermesh.ServiceName{}) {
		s.Service = r.Service.String()
	}
	return s
}
