package apiserver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// The annotations of a Service that make it global and say how. The first three
// have synonyms, for those who come from Cilium.
const (
	AnnotationGlobal     = "tombolo.io/global"      // true, false
	AnnotationShared     = "tombolo.io/shared"      // true, false: keep this cluster's backends to itself
	AnnotationAffinity   = "tombolo.io/affinity"    // local, remote, none
	AnnotationFailover   = "tombolo.io/failover"    // cluster names, in order
	AnnotationWeight     = "tombolo.io/weight"      // 0–65535, of this cluster
	AnnotationMinHealthy = "tombolo.io/min-healthy" // a count or a percentage

	synonymGlobal   = "service.cilium.io/global"
	synonymShared   = "service.cilium.io/shared"
	synonymAffinity = "service.cilium.io/affinity"
)

// AnnotationPrefix is that of all our annotations.
const AnnotationPrefix = "tombolo.io/"

var serviceAnnotations = []string{
	AnnotationAffinity, AnnotationFailover, AnnotationGlobal,
	AnnotationMinHealthy, AnnotationShared, AnnotationWeight,
}

// Settings are what the annotations of a Service say.
type Settings struct {
	Global, Shared bool
	Affinity       clustermesh.Affinity
	Failover       []string
	Weight         uint16
	HasWeight      bool
	MinHealthy     string
}

// exported: do other clusters see the service?
func (s Settings) exported() bool { return s.Global && s.Shared }

// AnnotationError is a value that was refused.
type AnnotationError struct {
	Annotation, Value string
	Why               string // which values are allowed, or what contradicts what
}

func (e *AnnotationError) Error() string {
	return fmt.Sprintf("annotation %s: %q is refused: %s", e.Annotation, e.Value, e.Why)
}

// ParseAnnotations reads a Service's annotations in cluster. The error is an
// *AnnotationError: nothing of the settings is to be used then. warnings name
// annotations that have no effect.
func ParseAnnotations(cluster string, from map[string]string) (s Settings, warnings []string, err error) {
	s.Shared = true
	p := annotationParser{from: from, used: make(map[string]string)}
	s.Global = p.boolean(AnnotationGlobal, synonymGlobal, false)
	s.Shared = p.boolean(AnnotationShared, synonymShared, true)
	p.value(AnnotationAffinity, synonymAffinity, func(v string) error {
		a, err := clustermesh.ParseAffinity(strings.TrimSpace(v))
		s.Affinity = a
		return err
	})
	p.value(AnnotationFailover, "", func(v string) error {
		f, err := clustermesh.ParseFailover(v)
		s.Failover = f
		if err == nil && slices.Contains(f, cluster) {
			err = fmt.Errorf("it names the service's own cluster %s; name other clusters only", cluster)
		}
		return err
	})
	p.value(AnnotationWeight, "", func(v string) error {
		n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 16)
		if err != nil {
			return fmt.Errorf("allowed are whole numbers from 0 to 65535")
		}
		s.Weight, s.HasWeight = uint16(n), true
		return nil
	})
	p.value(AnnotationMinHealthy, "", func(v string) error {
		_, err := clustermesh.ParseMinHealthy(strings.TrimSpace(v))
		s.MinHealthy = strings.TrimSpace(v)
		return err
	})
	if p.err == nil && s.Affinity == clustermesh.AffinityNone && len(s.Failover) > 0 {
		p.fail(AnnotationFailover, p.used[AnnotationFailover], "affinity none treats all clusters alike, an order of failover contradicts it; remove one of the two")
	}
	if p.err != nil {
		return Settings{}, nil, p.err
	}
	return s, p.warnings(s), nil
}

type annotationParser struct {
	from map[string]string
	used map[string]string // value by main name, as found under it or its synonym
	err  error             // the first one
}

func (p *annotationParser) fail(annotation, value, why string) {
	if p.err == nil {
		p.err = &AnnotationError{Annotation: annotation, Value: value, Why: why}
	}
}

// value finds an annotation under its name or its synonym; two that differ
// contradict one another.
func (p *annotationParser) value(name, synonym string, parse func(string) error) {
	v, has := p.from[name]
	found := name
	if other, hasOther := p.from[synonym]; synonym != "" && hasOther {
		if has && strings.TrimSpace(other) != strings.TrimSpace(v) {
			p.fail(name, v, fmt.Sprintf("%s says %q; they contradict one another, remove one", synonym, other))
			return
		}
		if !has {
			v, has, found = other, true, synonym
		}
	}
	if !has {
		return
	}
	p.used[name] = v
	if err := parse(v); err != nil {
		p.fail(found, v, err.Error())
	}
}

func (p *annotationParser) boolean(name, synonym string, unset bool) bool {
	result := unset
	p.value(name, synonym, func(v string) error {
		switch strings.TrimSpace(v) {
		case "true":
			result = true
		case "false":
			result = false
		default:
			return fmt.Errorf("allowed are true and false")
		}
		return nil
	})
	return result
}

// warnings: settings without effect, and annotations of ours that nobody knows.
func (p *annotationParser) warnings(s Settings) []string {
	var ws []string
	if !s.Global {
		for _, name := range slices.Sorted(maps.Keys(p.used)) {
			if name != AnnotationGlobal {
				ws = append(ws, fmt.Sprintf("%s has no effect: the service is not global (%s: \"true\")", name, AnnotationGlobal))
			}
		}
	}
	if s.Global && !s.Shared && s.HasWeight {
		ws = append(ws, fmt.Sprintf("%s has no effect on other clusters: %s is false", AnnotationWeight, AnnotationShared))
	}
	for _, name := range slices.Sorted(maps.Keys(p.from)) {
		if strings.HasPrefix(name, AnnotationPrefix) && !slices.Contains(serviceAnnotations, name) {
			ws = append(ws, fmt.Sprintf("annotation %s is not known and has no effect; known are %s", printable(name), strings.Join(serviceAnnotations, ", ")))
		}
	}
	return ws
}
