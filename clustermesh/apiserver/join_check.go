package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// maxClockDifference is how far the clocks of two clusters may be apart.
const maxClockDifference = certs.Skew

// checkClock compares a clock that came in a message with the own one.
func checkClock(what, who string, theirs int64, now time.Time) error {
	t := time.Unix(0, theirs)
	if d := t.Sub(now); d > maxClockDifference || d < -maxClockDifference {
		return Refuse(codes.FailedPrecondition, what, "set the clock that is wrong (NTP)",
			"the clock of %s says %s and ours says %s: %s apart, at most %s is allowed",
			who, timeText(t), timeText(now), d.Abs().Round(time.Second), maxClockDifference)
	}
	return nil
}

// checkVersion refuses versions that are more than one minor step apart. A
// version that is not of the form v1.2.3 (a build from source) passes.
func checkVersion(what, who, theirs, ours string) error {
	a, okA := minorOf(theirs)
	b, okB := minorOf(ours)
	if !okA || !okB || a[0] == b[0] && a[1]-b[1] <= 1 && b[1]-a[1] <= 1 {
		return nil
	}
	return Refuse(codes.FailedPrecondition, what, "upgrade the older one first",
		"%s runs version %s and we run %s; neighbouring minor versions work together", who, strconv.QuoteToASCII(theirs), ours)
}

func minorOf(version string) (v [2]int, ok bool) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return v, false
	}
	for i := range v {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 0 {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

// checkFit is everything that keeps own and candidate from being in one mesh.
// A peer that is the candidate itself, known by the same CA, is no obstacle:
// it joins again.
func checkFit(what string, own *clustermesh.Cluster, nodes []*clustermesh.Node, peers map[string]peerEntry, candidate *clustermesh.Cluster) error {
	var others []*clustermesh.Peer
	for _, e := range peers {
		if e.peer.Name == candidate.Name && e.peer.ID == candidate.ID && certs.SharedRoot(e.peer.CABundle, candidate.CABundle) != nil {
			continue
		}
		if e.peer.Name == candidate.Name && e.peer.ID == candidate.ID {
			return Refuse(codes.FailedPrecondition, what, "rename one of them; or, if it was set up anew, run tombolo mesh remove "+e.peer.Name+" and join again",
				"a peer named %s is in the mesh already, with another CA (fingerprint %s)", e.peer.Name, fingerprints(e.peer.CABundle))
		}
		others = append(others, e.peer)
	}
	if problems := clustermesh.Conflicts(own, nodes, others, candidate); len(problems) > 0 {
		r := Refuse(codes.FailedPrecondition, what, problems[0].Fix, "%s", problemText(problems[0]))
		for _, q := range problems[1:] {
			r.Why += "; also " + problemText(q)
		}
		return r
	}
	if len(candidate.PodPrefixes) == 0 || len(own.PodPrefixes) == 0 {
		name := candidate.Name
		if len(own.PodPrefixes) == 0 {
			name = own.Name
		}
		return Refuse(codes.FailedPrecondition, what, "set --pod-prefix there, or add its nodes first", "cluster %s has no pod prefixes, so nothing it says would be believed", name)
	}
	if root := certs.SharedRoot(own.CABundle, candidate.CABundle); root != nil {
		return sharedRoot(what, own.Name, candidate.Name, certs.Fingerprint(root))
	}
	for _, o := range others {
		if root := certs.SharedRoot(o.CABundle, candidate.CABundle); root != nil {
			return sharedRoot(what, o.Name, candidate.Name, certs.Fingerprint(root))
		}
	}
	return nil
}

// ownNodes are the nodes of this cluster that are published.
func (p *Port) ownNodes(ctx context.Context) ([]*clustermesh.Node, error) {
	var nodes []*clustermesh.Node
	prefix := clustermesh.KindPrefix(clustermesh.ScopeExport, p.own, clustermesh.KindNode)
	_, err := p.cfg.Store.List(ctx, prefix, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			key, err := clustermesh.ParseKey(kv.Key)
			if err != nil {
				continue
			}
			if rec, err := clustermesh.Decode(key, kv.Value); err == nil {
				nodes = append(nodes, rec.(*clustermesh.Node))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the own nodes: %w", err)
	}
	return nodes, nil
}

func problemText(q clustermesh.Problem) string {
	if q.Why == "" {
		return q.What
	}
	return q.What + ": " + q.Why
}

func sharedRoot(what, a, b, fingerprint string) error {
	return Refuse(codes.FailedPrecondition, what, "give each cluster a CA of its own",
		"clusters %s and %s share a CA (fingerprint %s), so each could speak for the other", a, b, fingerprint)
}

// dialRefusal puts a failure to dial into words; where says who dialled whom.
func dialRefusal(what, where string, err error) error {
	r := &Refusal{Code: codes.Unavailable, What: what, Why: where + ": " + err.Error()}
	switch {
	case errors.Is(err, errUnreachable):
		r.Fix = "open the mesh port in the firewall between the clusters, or correct --advertise"
	case errors.Is(err, certs.ErrNotYetValid):
		r.Code, r.Fix = codes.FailedPrecondition, "set the clock that is wrong (NTP)"
	case errors.Is(err, certs.ErrOtherCA):
		r.Code, r.Fix = codes.PermissionDenied, "make sure that the address is that of the cluster, then ask for a new token"
	default:
		if inner := AsRefusal(err); inner != nil {
			r.Fix = inner.Fix
		} else {
			r.Fix = "make sure that the address leads to the mesh port of that cluster: --advertise"
		}
	}
	return r
}

// versionText fills in for a version that was not told.
func versionText(v string) string {
	if v == "" {
		return "unknown"
	}
	return fmt.Sprintf("%.100q", v)
}
