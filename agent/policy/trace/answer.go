package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Answer to a Question. Fields are only added.
type Answer struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"` // PolicyTrace
	ID         json.RawMessage `json:"id,omitempty"`
	Verdict    string          `json:"verdict"` // allowed or denied
	Why        string          `json:"why"`
	From       EndText         `json:"from"`
	To         EndText         `json:"to"`
	Protocol   string          `json:"protocol"`
	Port       uint16          `json:"port,omitempty"`
	PortName   string          `json:"portName,omitempty"`
	Egress     Side            `json:"egress"`  // what policy says of what leaves From
	Ingress    Side            `json:"ingress"` // what policy says of what reaches To
	Notes      []string        `json:"notes,omitempty"`
}

// Verdicts.
const (
	Allowed = "allowed"
	Denied  = "denied"
)

// EndText is an end as it was found.
type EndText struct {
	Kind        Kind              `json:"kind"`
	Name        string            `json:"name"`
	Cluster     string            `json:"cluster,omitempty"`
	Namespace   string            `json:"namespace,omitempty"`
	Pod         string            `json:"pod,omitempty"`
	Node        string            `json:"node,omitempty"`
	HostNetwork bool              `json:"hostNetwork,omitempty"`
	Address     string            `json:"address,omitempty"` // that was judged
	Identity    string            `json:"identity"`          // cluster:number
	Labels      map[string]string `json:"labels,omitempty"`  // that the identity stands for
}

// Side is one direction.
type Side struct {
	Verdict string `json:"verdict"`
	Why     string `json:"why"`
	*policy.SideExplanation
}

// Brief answers many questions: Text and -o json leave most out.
type Brief struct {
	ID      json.RawMessage `json:"id,omitempty"`
	Verdict string          `json:"verdict,omitempty"` // none if there is an error
	Egress  *BriefSide      `json:"egress,omitempty"`
	Ingress *BriefSide      `json:"ingress,omitempty"`
	Notes   []string        `json:"notes,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// BriefSide is one direction of a Brief.
type BriefSide struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason,omitempty"` // none where policy does not apply
	Rule    string `json:"rule,omitempty"`
}

// Trace answers in full.
func Trace(w World, q Question) (*Answer, error) {
	from, to, port, err := find(w, q)
	if err != nil {
		return nil, err
	}
	both := pairs(from, to)
	if len(both) == 0 {
		return nil, fmt.Errorf("%s and %s have no address family in common: one cannot connect to the other", from.Name, to.Name)
	}
	a := judge(w, from, to, port, both[0], false)
	a.ID = q.ID
	for _, other := range both[1:] {
		if b := judge(w, from, to, port, other, true); b.Verdict != a.Verdict {
			a.Notes = append(a.Notes, fmt.Sprintf("over IPv6 it is %s: %s", b.Verdict, b.Why))
		}
	}
	a.Notes = append(a.Notes, notes(w, from, to, a)...)
	return a, nil
}

// Quick answers in a line; also what is wrong with the question.
func Quick(w World, q Question) Brief {
	from, to, port, err := find(w, q)
	if err != nil {
		return Brief{ID: q.ID, Error: err.Error()}
	}
	both := pairs(from, to)
	if len(both) == 0 {
		return Brief{ID: q.ID, Error: fmt.Sprintf("%s and %s have no address family in common", from.Name, to.Name)}
	}
	a := judge(w, from, to, port, both[0], true)
	b := Brief{ID: q.ID, Verdict: a.Verdict, Egress: a.Egress.brief(), Ingress: a.Ingress.brief()}
	for _, other := range both[1:] {
		if six := judge(w, from, to, port, other, true); six.Verdict != a.Verdict {
			b.Notes = append(b.Notes, "over IPv6 it is "+six.Verdict)
		}
	}
	return b
}

func (s Side) brief() *BriefSide {
	b := &BriefSide{Verdict: s.Verdict}
	if s.SideExplanation != nil {
		b.Reason, b.Rule = s.Reason, s.Rule
	}
	return b
}

func find(w World, q Question) (from, to *End, port Port, err error) {
	if port, err = ParsePort(string(q.Port), q.Protocol); err != nil {
		return
	}
	if from, to, err = ends(w, q); err != nil {
		return
	}
	if !from.policed() && !to.policed() && from.Kind != KindPod && to.Kind != KindPod {
		return from, to, port, fmt.Errorf("neither %s nor %s is a pod: policy says nothing of what passes between them", from.Name, to.Name)
	}
	port, err = port.resolve(to)
	return
}

// judge puts together what the clusters of both ends say.
func judge(w World, from, to *End, port Port, at [2]netip.Addr, brief bool) *Answer {
	a := &Answer{
		APIVersion: "tombolo.io/v1", Kind: "PolicyTrace", Verdict: Allowed,
		Protocol: protocolText(port.Protocol), Port: port.Number, PortName: port.Name,
	}
	q := policy.Query{From: from.party(at[0]), To: to.party(at[1]), Proto: port.Protocol, Port: port.Number, Brief: brief}
	a.Egress = side(w, policy.Egress, from, to, q)
	a.Ingress = side(w, policy.Ingress, to, from, q)
	var denied, allowed []string
	for _, s := range []struct {
		name string
		Side
	}{{"egress of " + from.Name, a.Egress}, {"ingress of " + to.Name, a.Ingress}} {
		if s.Verdict == Denied {
			a.Verdict = Denied
			denied = append(denied, s.name+" is denied: "+s.Why)
		} else if s.SideExplanation != nil && s.Rule != "" {
			allowed = append(allowed, s.name+" is allowed: "+s.Why)
		}
	}
	switch {
	case denied != nil:
		a.Why = strings.Join(denied, "; ")
	case allowed != nil:
		a.Why = strings.Join(allowed, "; ")
	default:
		a.Why = "no policy has a say"
	}
	if !brief {
		a.From, a.To = from.text(w, at[0], to), to.text(w, at[1], from)
	}
	return a
}

func side(w World, d policy.Direction, pod, other *End, q policy.Query) Side {
	switch {
	case pod.HostNetwork:
		return Side{Verdict: Allowed, Why: "it is on its node's network, where no policy applies"}
	case !pod.policed():
		return Side{Verdict: Allowed, Why: "it is no pod: no policy applies"}
	case other.Identity == clustermesh.IdentityHost:
		return Side{Verdict: Allowed, Why: "between a pod and the node it runs on everything may pass"}
	}
	e := w.Engine(pod.Cluster)
	if e == nil {
		return Side{Verdict: Allowed, Why: "the policies of cluster " + pod.Cluster + " are not known here: ask there"}
	}
	q.From.Pod, q.To.Pod = d == policy.Egress, d == policy.Ingress
	x := e.Explain(q)
	s := Side{Verdict: Denied, SideExplanation: x.Egress}
	if d == policy.Ingress {
		s.SideExplanation = x.Ingress
	}
	if s.Allowed {
		s.Verdict = Allowed
	}
	s.Why = s.SideExplanation.Words()
	return s
}

// text writes an end down. Labels of an identity are known to every engine; that
// of the other end serves where the policies of this one's cluster are not known.
func (e *End) text(w World, a netip.Addr, other *End) EndText {
	t := EndText{
		Kind: e.Kind, Name: e.Name, Cluster: e.Cluster, Namespace: e.Namespace, Pod: e.Pod, Node: e.Node, HostNetwork: e.HostNetwork,
		Identity: fmt.Sprintf("%d:%d", e.Identity.Cluster(), e.Identity.Number()),
	}
	if a.IsValid() && !e.Invented {
		t.Address = a.String()
	}
	for _, cluster := range []string{e.Cluster, other.Cluster} {
		if eng := w.Engine(cluster); eng != nil && t.Labels == nil {
			t.Labels = eng.Labels(e.Identity)
		}
	}
	return t
}

// notes are what a person should know about the answer.
func notes(w World, from, to *End, a *Answer) []string {
	out := slices.Concat(from.Notes, to.Notes)
	for _, e := range []*End{from, to} {
		if !e.Invented {
			continue
		}
		s := a.Ingress
		if e == to {
			s = a.Egress
		}
		if s.SideExplanation != nil && s.ByAddress {
			what := "its address is not known"
			if e.Kind == KindWorld {
				what = "it is any address outside"
			}
			out = append(out, fmt.Sprintf("%s: %s, so rules by ipBlock or networks were judged for an address that only the widest of them contain", e.Name, what))
		}
	}
	if from.policed() && from.Cluster == to.Cluster && from.Namespace == to.Namespace && from.Pod == to.Pod && to.policed() {
		out = append(out, "what a pod sends to its own address does not leave it, and no policy applies; this is for what comes back to it through a service")
	}
	for _, e := range []*End{from, to} {
		if e.policed() && w.Engine(e.Cluster) == nil {
			out = append(out, fmt.Sprintf("the policies of cluster %s are not known here, and may deny it", e.Cluster))
		}
	}
	seen := map[*policy.Engine]bool{}
	for _, e := range []*End{from, to} {
		eng := w.Engine(e.Cluster)
		if eng == nil || seen[eng] {
			continue
		}
		seen[eng] = true
		for _, p := range eng.Problems() {
			out = append(out, p.What+": "+p.Why)
		}
	}
	return out
}

// ParseQuestion reads a question that stands in a line as JSON.
func ParseQuestion(line []byte) (Question, error) {
	var q Question
	err := json.Unmarshal(line, &q)
	var syntax *json.SyntaxError
	var bad *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return q, fmt.Errorf("not valid JSON at byte %d: %w", syntax.Offset, err)
	case errors.As(err, &bad) && bad.Field == "":
		return q, fmt.Errorf(`a %s is no question: want {"from": "shop/web", "to": "shop/db", "port": 5432}`, bad.Value)
	case errors.As(err, &bad):
		return q, fmt.Errorf("%s: a %s is no text", bad.Field, bad.Value)
	}
	return q, err
}

// Line answers a line that holds a question as JSON; nil: it was too long.
func Line(w World, line []byte) Brief {
	if line == nil {
		return Brief{Error: "the line is too long for a question"}
	}
	q, err := ParseQuestion(line)
	if err != nil {
		return Brief{ID: q.ID, Error: err.Error()}
	}
	return Quick(w, q)
}
