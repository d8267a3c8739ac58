package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

type operator uint8

const (
	opIn operator = iota
	opNotIn
	opExists
	opAbsent
)

type requirement struct {
	key    string
	op     operator
	values []string // sorted
}

// selector selects identities. Its text is canonical: equal texts select alike.
type selector struct {
	text string
	own  bool // this cluster's only
	ns   string
	reqs []requirement
}

var labelKey = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)

// scope is over which clusters selectors range that do not say.
type scope struct{ all bool }

// peerSelector combines a pod and a namespace selector; nil is not there. home is
// the namespace that holds when the namespace selector is not there ("" = any).
func (s scope) peerSelector(pods, namespaces *labelSelector, home string) (*selector, error) {
	out := &selector{own: !s.all}
	for _, part := range []struct {
		what   string
		from   *labelSelector
		prefix string
	}{{"podSelector", pods, ""}, {"namespaceSelector", namespaces, clustermesh.LabelNamespacePrefix}} {
		if part.from == nil {
			continue
		}
		reqs, err := requirements(part.from)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", part.what, err)
		}
		for _, r := range reqs {
			if err := selectable(r.key); err != nil && part.prefix == "" {
				return nil, fmt.Errorf("%s: %w", part.what, err)
			}
			if r.key == clustermesh.LabelCluster {
				out.own = false
			} else {
				r.key = part.prefix + r.key
			}
			out.reqs = append(out.reqs, r)
		}
	}
	if namespaces == nil {
		out.ns = home
	}
	out.finish()
	return out, nil
}

// selectable refuses pod labels that are no part of identities: nobody can say
// which pods have them.
func selectable(key string) error {
	if clustermesh.FleetingLabel(key) {
		return fmt.Errorf("label %q differs from rollout to rollout and is no part of identities: nothing can be selected by it", key)
	}
	own := []string{clustermesh.LabelCluster, clustermesh.LabelNamespace, clustermesh.LabelServiceAccount}
	if strings.HasPrefix(key, "tombolo.io/") && !slices.Contains(own, key) {
		return fmt.Errorf("label %q: of tombolo.io/ only cluster, namespace and serviceaccount are part of identities", key)
	}
	return nil
}

// subjectSelector selects pods of this cluster.
func subjectSelector(pods, namespaces *labelSelector, home string) (*selector, error) {
	s, err := scope{}.peerSelector(pods, namespaces, home)
	if err == nil && !s.own {
		s.own = true
		s.finish()
	}
	return s, err
}

// requirements are those of a label selector, all of which must hold.
func requirements(s *labelSelector) ([]requirement, error) {
	var out []requirement
	for k, v := range s.MatchLabels {
		out = append(out, requirement{k, opIn, []string{v}})
	}
	for _, e := range s.MatchExpressions {
		r := requirement{key: e.Key}
		switch e.Operator {
		case "In":
			r.op = opIn
		case "NotIn":
			r.op = opNotIn
		case "Exists":
			r.op = opExists
		case "DoesNotExist":
			r.op = opAbsent
		default:
			return nil, fmt.Errorf("operator %q of label %q is not In, NotIn, Exists or DoesNotExist", e.Operator, e.Key)
		}
		if set := r.op == opIn || r.op == opNotIn; set != (len(e.Values) > 0) {
			return nil, fmt.Errorf("operator %s of label %q has %d values", e.Operator, e.Key, len(e.Values))
		}
		r.values = slices.Compact(slices.Sorted(slices.Values(e.Values)))
		out = append(out, r)
	}
	for _, r := range out {
		if !labelKey.MatchString(r.key) {
			return nil, fmt.Errorf("%q is no label key", r.key)
		}
	}
	return out, nil
}

func (s *selector) finish() {
	slices.SortFunc(s.reqs, func(a, b requirement) int { return strings.Compare(a.String(), b.String()) })
	s.reqs = slices.CompactFunc(s.reqs, func(a, b requirement) bool { return a.String() == b.String() })
	var parts []string
	if s.own {
		parts = append(parts, "own cluster")
	}
	if s.ns != "" {
		parts = append(parts, "in "+s.ns)
	}
	for _, r := range s.reqs {
		parts = append(parts, r.String())
	}
	s.text = "pods"
	if len(parts) > 0 {
		s.text += "(" + strings.Join(parts, ", ") + ")"
	}
}

func (r requirement) String() string {
	quoted := make([]string, len(r.values))
	for i, v := range r.values {
		quoted[i] = v
		if v == "" || strings.ContainsAny(v, "|,() \"\n") {
			quoted[i] = strconv.Quote(v)
		}
	}
	set := strings.Join(quoted, "|")
	switch r.op {
	case opIn:
		return r.key + "=" + set
	case opNotIn:
		return r.key + "!=" + set
	case opExists:
		return r.key
	}
	return "!" + r.key
}

func (r requirement) holds(labels []clustermesh.Label) bool {
	value, has := labelOf(labels, r.key)
	switch r.op {
	case opIn:
		return has && slices.Contains(r.values, value)
	case opNotIn:
		return !has || !slices.Contains(r.values, value)
	case opExists:
		return has
	}
	return !has
}

// labelOf finds a label; labels are sorted by key.
func labelOf(labels []clustermesh.Label, key string) (string, bool) {
	i, ok := slices.BinarySearchFunc(labels, key, func(l clustermesh.Label, key string) int { return strings.Compare(l.Key, key) })
	if !ok {
		return "", false
	}
	return labels[i].Value, true
}

// matches says whether an identity of these labels is selected. Labels that are
// not known (nil) are selected by nothing, and reserved identities have none.
func (s *selector) matches(own clustermesh.ID, id clustermesh.Identity, labels []clustermesh.Label) bool {
	if labels == nil || id.Cluster() == 0 || id.Number() == 0 || s.own && id.Cluster() != own {
		return false
	}
	if s.ns != "" {
		if ns, _ := labelOf(labels, clustermesh.LabelNamespace); ns != s.ns {
			return false
		}
	}
	return s.holds(labels)
}

func (s *selector) holds(labels []clustermesh.Label) bool {
	for _, r := range s.reqs {
		if !r.holds(labels) {
			return false
		}
	}
	return true
}
