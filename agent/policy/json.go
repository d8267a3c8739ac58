package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// The parts of the two kinds that decide. Pointers and nil slices where absent
// and empty mean different things. Fields are decoded one by one where a bad one
// shall not take the others with it.

type manifest struct {
	Spec json.RawMessage `json:"spec"`
}

type labelSelector struct {
	MatchLabels      map[string]string `json:"matchLabels"`
	MatchExpressions []struct {
		Key      string   `json:"key"`
		Operator string   `json:"operator"`
		Values   []string `json:"values"`
	} `json:"matchExpressions"`
}

type networkPolicySpec struct {
	PodSelector json.RawMessage `json:"podSelector"`
	Ingress     json.RawMessage `json:"ingress"`
	Egress      json.RawMessage `json:"egress"`
	PolicyTypes json.RawMessage `json:"policyTypes"`
}

type networkPolicyRule struct {
	Ports []networkPolicyPort `json:"ports"`
	From  []networkPolicyPeer `json:"from"`
	To    []networkPolicyPeer `json:"to"`
}

type networkPolicyPort struct {
	Protocol *string      `json:"protocol"`
	Port     *intOrString `json:"port"`
	EndPort  *int64       `json:"endPort"`
}

type networkPolicyPeer struct {
	PodSelector       *labelSelector `json:"podSelector"`
	NamespaceSelector *labelSelector `json:"namespaceSelector"`
	IPBlock           *struct {
		CIDR   string   `json:"cidr"`
		Except []string `json:"except"`
	} `json:"ipBlock"`
}

type clusterPolicySpec struct {
	Tier     json.RawMessage `json:"tier"`
	Priority json.RawMessage `json:"priority"`
	Subject  json.RawMessage `json:"subject"`
	Ingress  json.RawMessage `json:"ingress"`
	Egress   json.RawMessage `json:"egress"`
}

type namespacedPod struct {
	NamespaceSelector *labelSelector `json:"namespaceSelector"`
	PodSelector       *labelSelector `json:"podSelector"`
}

type clusterPolicySubject struct {
	Namespaces *labelSelector `json:"namespaces"`
	Pods       *namespacedPod `json:"pods"`
}

// clusterPolicyRule keeps what only may fail within the rule apart.
type clusterPolicyRule struct {
	Action    string          `json:"action"`
	From      json.RawMessage `json:"from"`
	To        json.RawMessage `json:"to"`
	Protocols json.RawMessage `json:"protocols"`
}

type clusterPolicyPeer struct {
	Namespaces  *labelSelector `json:"namespaces"`
	Pods        *namespacedPod `json:"pods"`
	Nodes       *labelSelector `json:"nodes"`
	Networks    []string       `json:"networks"`
	DomainNames []string       `json:"domainNames"`
}

type clusterPolicyProtocol struct {
	TCP                  *clusterPolicyPorts `json:"tcp"`
	UDP                  *clusterPolicyPorts `json:"udp"`
	SCTP                 *clusterPolicyPorts `json:"sctp"`
	DestinationNamedPort string              `json:"destinationNamedPort"`
}

type clusterPolicyPorts struct {
	DestinationPort *struct {
		Number int64      `json:"number"`
		Range  *portRange `json:"range"`
	} `json:"destinationPort"`
}

type portRange struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

// intOrString is a port: a number or a name.
type intOrString struct {
	number int64
	name   string
	named  bool
}

func (p *intOrString) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		p.named = true
		return json.Unmarshal(text, &p.name)
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return fmt.Errorf("port %s is neither a number nor a name", text)
	}
	p.number = n
	return nil
}

// decode is json.Unmarshal, with an error that names the field alone. Absent and
// null leave v as it is.
func decode(what string, text json.RawMessage, v any) error {
	if len(text) == 0 {
		return nil
	}
	err := json.Unmarshal(text, v)
	var bad *json.UnmarshalTypeError
	if errors.As(err, &bad) {
		if bad.Field != "" {
			what += "." + bad.Field
		}
		return fmt.Errorf("%s holds a %s where a %s belongs", what, bad.Value, bad.Type)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
