package kube

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// patience is how long a request may fail without being a problem: an API server
// that restarts, or a watch that ends, is none.
const patience = 2 * time.Second

// problems are the present ones; the caller holds the lock. Their text tells no
// ports or times, so that one that lasts is one.
func (s *Source) problems() []apiserver.Problem {
	var ps []apiserver.Problem
	object := "Kubernetes API at " + s.cfg.Client.Host
	away := make(map[string][]string) // why → kinds
	for _, k := range s.kinds {
		if apierrors.IsForbidden(k.crdErr) {
			ps = append(ps, apiserver.Problem{
				Object: object, What: "does not let this server see the CustomResourceDefinition " + k.crd(), Why: reason(k.crdErr),
				Fix: fmt.Sprintf("give its ServiceAccount the right to get, list and watch customresourcedefinitions (API group %q); until then it is noticed late when %s come to exist", crdResource.Group, k.resource),
			})
		}
		switch {
		case k.err == nil:
		case errors.Is(k.err, errBehind):
			ps = append(ps, apiserver.Problem{
				Object: object, What: "tells of an older state of " + k.resource + " than it did before", Why: "it is behind another API server, or its etcd was restored from a copy",
				Fix: fmt.Sprintf("what was known stays in force; if it stays so for %v, the older state is taken", s.cfg.Restored),
			})
		case apierrors.IsForbidden(k.err) || apierrors.IsUnauthorized(k.err):
			meanwhile := s.meanwhile()
			if k.spared && !k.synced {
				meanwhile = "until then they have no effect, and all else is published"
			}
			ps = append(ps, apiserver.Problem{
				Object: object, What: "refuses to list or watch " + k.resource, Why: reason(k.err),
				Fix: "give this server's ServiceAccount a ClusterRole with " + k.rule() + "; " + meanwhile,
			})
		case time.Since(k.errAt) >= patience:
			away[reason(k.err)] = append(away[reason(k.err)], k.resource)
		default:
			time.AfterFunc(patience-time.Since(k.errAt), s.stir)
		}
	}
	for why, kinds := range away {
		ps = append(ps, apiserver.Problem{
			Object: object, What: "does not answer about " + strings.Join(kinds, ", "), Why: why,
			Fix: "see that it runs and can be reached from here; " + s.meanwhile(),
		})
	}
	for _, ref := range sortedRefs(s.warnings) {
		ps = append(ps, s.warnings[ref])
	}
	apiserver.SortProblems(ps)
	return ps
}

// doneWithout: the kind has been forbidden long enough for the rest to be delivered.
func (k *kindState) doneWithout() bool {
	return k.spared && !k.synced && apierrors.IsForbidden(k.err) && time.Since(k.errAt) >= k.source.cfg.Forbidden
}

// meanwhile says what the rest of the mesh notices.
func (s *Source) meanwhile() string {
	for _, k := range s.kinds {
		if !k.synced && !k.doneWithout() {
			return "until then nothing is published anew"
		}
	}
	return "until then what is known stays in force"
}

// reason is the part of an error that is the same each time.
func reason(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Message
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	var unknown net.Error
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection broke"
	case errors.As(err, &unknown) && unknown.Timeout():
		return "no answer in time"
	}
	return err.Error()
}
