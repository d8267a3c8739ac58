package mcs

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Export is one cluster's part in a service.
type Export struct {
	Cluster string
	Service *clustermesh.Service // Export is set
	Slices  []*clustermesh.EndpointSlice
}

// Import is a service of the mesh: what all clusters that export it make of it.
type Import struct {
	Name     clustermesh.ServiceName
	Clusters []string // that export it, sorted
	Oldest   string   // whose word counts where they disagree

	Headless            bool
	Ports               []Port
	SessionAffinity     time.Duration // 0 = none
	InternalLocal       bool
	TrafficDistribution string
	Labels, Annotations []clustermesh.Label
	IPv4, IPv6          bool

	Conflicts []Conflict
}

// Port is a port of an import.
type Port struct {
	Name        string
	Protocol    clustermesh.Protocol
	Port        uint16
	AppProtocol string
}

// Conflict is something that the exporting clusters do not agree on.
type Conflict struct {
	Reason  v1beta1.ServiceExportConditionReason
	Message string
}

type portNumber struct {
	protocol clustermesh.Protocol
	port     uint16
}

// Resolve makes one import of what the clusters export under one name; false if
// none does. Where they disagree on what cannot be merged the oldest export
// decides; of two equally old ones that of the first cluster by name. Exports
// that no API server would take are left out.
func Resolve(name clustermesh.ServiceName, exports []Export) (Import, bool) {
	var all []Export
	for _, e := range exports {
		if check(e) == nil {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return Import{}, false
	}
	slices.SortFunc(all, func(a, b Export) int {
		return cmp.Or(cmp.Compare(a.Service.Export.Created, b.Service.Export.Created), cmp.Compare(a.Cluster, b.Cluster))
	})
	oldest := all[0].Service
	im := Import{
		Name: name, Oldest: all[0].Cluster, Headless: oldest.Headless,
		SessionAffinity: oldest.SessionAffinity, InternalLocal: oldest.InternalLocal,
		TrafficDistribution: oldest.Export.TrafficDistribution,
		Labels:              oldest.Export.Labels, Annotations: oldest.Export.Annotations,
	}
	for _, e := range all {
		im.Clusters = append(im.Clusters, e.Cluster)
	}
	slices.Sort(im.Clusters)
	r := resolver{Import: &im, all: all}
	r.ports()
	r.agree(v1beta1.ServiceExportReasonTypeConflict, "type", func(s *clustermesh.Service) string { return string(importType(s.Headless)) })
	if !im.Headless { // the rest means nothing without an address
		r.all = slices.DeleteFunc(slices.Clone(all), func(e Export) bool { return e.Service.Headless })
		r.affinity()
		r.agree(v1beta1.ServiceExportReasonInternalTrafficPolicyConflict, "internalTrafficPolicy", func(s *clustermesh.Service) string { return string(trafficPolicy(s.InternalLocal)) })
		r.agree(v1beta1.ServiceExportReasonTrafficDistributionConflict, "trafficDistribution", func(s *clustermesh.Service) string { return s.Export.TrafficDistribution })
	}
	r.all = all
	r.families()
	r.agree(v1beta1.ServiceExportReasonLabelsConflict, "exported labels", func(s *clustermesh.Service) string { return labelsText(s.Export.Labels) })
	r.agree(v1beta1.ServiceExportReasonAnnotationsConflict, "exported annotations", func(s *clustermesh.Service) string { return labelsText(s.Export.Annotations) })
	return im, true
}

type resolver struct {
	*Import
	all []Export // the oldest first
}

func (r *resolver) conflict(reason v1beta1.ServiceExportConditionReason, format string, args ...any) {
	r.Conflicts = append(r.Conflicts, Conflict{Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// agree notes a conflict if not all clusters say the same as the oldest export.
func (r *resolver) agree(reason v1beta1.ServiceExportConditionReason, what string, text func(*clustermesh.Service) string) {
	mine := text(r.all[0].Service)
	others := 0
	for _, e := range r.all {
		if text(e.Service) != mine {
			others++
		}
	}
	if others > 0 {
		r.conflict(reason, "Conflicting %s. Using %s from the oldest export, in cluster %q. %d of %d clusters disagree.", what, quote(mine), r.Oldest, others, len(r.all))
	}
}

// quote makes foreign text one short word.
func quote(s string) string {
	if len(s) > 120 {
		s = s[:120] + "…"
	}
	return strconv.QuoteToASCII(s)
}

// ports is the union: by name first, then by protocol and number. A port that
// clashes with one of an older export is left out. One that not all clusters have
// is a conflict as well, though it is used: what comes to it goes to those alone
// that have it.
func (r *resolver) ports() {
	names, numbers := map[string]Port{}, map[portNumber]Port{}
	var what []string
	var lacks []lack // what is said of a clash, and need not be said again
	for _, e := range r.all {
		for _, port := range e.ports() {
			byName, hasName := names[port.Name]
			byNumber, hasNumber := numbers[portNumber{port.Protocol, port.Port}]
			switch {
			case hasName && byName == port:
			case hasName, hasNumber:
				used := byName
				if !hasName {
					used = byNumber
				}
				lacks = append(lacks, lack{e.Cluster, used})
				what = append(what, fmt.Sprintf("%s is used, and not %s of cluster %q", used, port, e.Cluster))
			default:
				names[port.Name], numbers[portNumber{port.Protocol, port.Port}] = port, port
				r.Ports = append(r.Ports, port)
			}
		}
	}
	disagree := 0
	for _, e := range r.all {
		list := e.ports()
		if !samePorts(list, r.all[0].ports()) {
			disagree++
		}
		for _, p := range r.Ports {
			if !slices.Contains(list, p) && !slices.Contains(lacks, lack{e.Cluster, p}) {
				what = append(what, fmt.Sprintf("%s is not in cluster %q", p, e.Cluster))
			}
		}
	}
	if disagree > 0 {
		if len(what) > 3 {
			what = append(what[:3], "…")
		}
		r.conflict(v1beta1.ServiceExportReasonPortConflict, "Conflicting ports. Older exports count, the oldest is in cluster %q. %d of %d clusters disagree: %s.",
			r.Oldest, disagree, len(r.all), strings.Join(what, "; "))
	}
}

// lack is a cluster without a port of the union.
type lack struct {
	cluster string
	port    Port
}

// ports are those of the exported Service.
func (e Export) ports() []Port {
	out := make([]Port, len(e.Service.Ports))
	for i, p := range e.Service.Ports {
		out[i] = Port{Name: p.Name, Protocol: p.Protocol, Port: p.Port, AppProtocol: appProtocol(e.Service, i)}
	}
	return out
}

// samePorts: in whatever order.
func samePorts(a, b []Port) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(p Port) bool { return !slices.Contains(b, p) })
}

// String is name:TCP:80.
func (p Port) String() string {
	s := p.Protocol.String() + ":" + strconv.Itoa(int(p.Port))
	if p.Name != "" {
		s = p.Name + ":" + s
	}
	if p.AppProtocol != "" {
		s += " (" + p.AppProtocol + ")"
	}
	return s
}

// affinity: whether there is one, and how long it lasts, are two things.
func (r *resolver) affinity() {
	r.agree(v1beta1.ServiceExportReasonSessionAffinityConflict, "sessionAffinity", func(s *clustermesh.Service) string { return string(sessionAffinity(s.SessionAffinity)) })
	if r.SessionAffinity == 0 {
		return
	}
	r.agree(v1beta1.ServiceExportReasonSessionAffinityConfigConflict, "sessionAffinityConfig", func(s *clustermesh.Service) string {
		if s.SessionAffinity == 0 {
			return r.SessionAffinity.String() // no config to disagree on
		}
		return s.SessionAffinity.String()
	})
}

// families are those that all clusters have: so every client reaches every
// backend. Where there is none the oldest export decides, and some backends are
// reached by nobody.
func (r *resolver) families() {
	r.IPv4, r.IPv6 = true, true
	for _, e := range r.all {
		r.IPv4, r.IPv6 = r.IPv4 && e.Service.Export.IPv4, r.IPv6 && e.Service.Export.IPv6
	}
	if r.IPv4 || r.IPv6 {
		return
	}
	r.IPv4, r.IPv6 = r.all[0].Service.Export.IPv4, r.all[0].Service.Export.IPv6
	r.agree(v1beta1.ServiceExportReasonIPFamilyConflict, "address families", func(s *clustermesh.Service) string { return familiesText(s.Export.IPv4, s.Export.IPv6) })
}

func familiesText(v4, v6 bool) string {
	switch {
	case v4 && v6:
		return "IPv4, IPv6"
	case v6:
		return "IPv6"
	}
	return "IPv4"
}

func labelsText(list []clustermesh.Label) string {
	var b strings.Builder
	for i, l := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.Key + "=" + l.Value)
	}
	return b.String()
}

func importType(headless bool) v1beta1.ServiceImportType {
	if headless {
		return v1beta1.Headless
	}
	return v1beta1.ClusterSetIP
}

func trafficPolicy(local bool) corev1.ServiceInternalTrafficPolicy {
	if local {
		return corev1.ServiceInternalTrafficPolicyLocal
	}
	return corev1.ServiceInternalTrafficPolicyCluster
}

func sessionAffinity(d time.Duration) corev1.ServiceAffinity {
	if d > 0 {
		return corev1.ServiceAffinityClientIP
	}
	return corev1.ServiceAffinityNone
}
