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
	Metadata struct{ Name, Namespace string }
	Spec     json.RawMessage
}

type labelSelector struct {
	MatchLabels      map[string]string
	MatchExpressions []struct {
		Key      string
		Operator string
		Values   []string
	}
}

type networkPolicySpec struct {
	PodSelector json.RawMessage
	Ingress     json.RawMessage
	Egress      json.RawMessage
	PolicyTypes json.RawMessage
}

type networkPolicyRule struct {
	Ports []networkPolicyPort
	From  []networkPolicyPeer
	To    []networkPolicyPeer
}

type networkPolicyPort struct {
	Protocol *string
	Port     *intOrString
	EndPort  *int64
}

type networkPolicyPeer struct {
	PodSelector       *labelSelector
	NamespaceSelector *labelSelector
	IPBlock           *struct {
		CIDR   string
		Except []string
	}
}

type clusterPolicySpec struct {
	Tier     json.RawMessage
	Priority json.RawMessage
	Subject  json.RawMessage
	Ingress  json.RawMessage
	Egress   json.RawMessage
}

type namespacedPod struct {
	NamespaceSelector *labelSelector
	PodSelector       *labelSelector
}

type clusterPolicySubject struct {
	Namespaces *labelSelector
	Pods       *namespacedPod
}

// clusterPolicyRule keeps what only may fail within the rule apart.
type clusterPolicyRule struct {
	Action    string
	From      json.RawMessage
	To        json.RawMessage
	Protocols json.RawMessage
}

type clusterPolicyPeer struct {
	Namespaces  *labelSelector
	Pods        *namespacedPod
	Nodes       *labelSelector
	Networks    []string
	DomainNames []string
}

type clusterPolicyProtocol struct {
	TCP, UDP, SCTP       *clusterPolicyPorts
	DestinationNamedPort string
}

type clusterPolicyPorts struct {
	DestinationPort *struct {
		Number int64
		Range  *struct{ Start, End int64 }
	}
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
