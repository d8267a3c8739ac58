// Package trace answers whether one end may connect to another, in words and as
// JSON. It is pure: who the ends are is asked of a World, what policy says of a
// policy.Engine. The command line asks it about folders of manifests, the agent
// about the mesh, and both answer alike.
package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Question is what is asked, as it is typed.
type Question struct {
	ID       json.RawMessage `json:"id,omitempty"` // comes back with the answer
	From     string          `json:"from"`
	To       string          `json:"to"`
	Port     Text            `json:"port,omitempty"`
	Protocol string          `json:"protocol,omitempty"`
}

// Text is a JSON string, or a number as its digits.
type Text string

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		return json.Unmarshal(text, (*string)(t))
	}
	var n json.Number
	if err := json.Unmarshal(text, &n); err != nil {
		return fmt.Errorf("port: %s is neither a number nor a name", text)
	}
	*t = Text(n)
	return nil
}

// Kind of an end.
type Kind string

// The kinds that a Name can have; an End is never of kind address.
const (
	KindPod     Kind = "pod"
	KindNode    Kind = "node"
	KindHost    Kind = "host" // the node that the other end runs on
	KindWorld   Kind = "world"
	KindAddress Kind = "address"
)

// Name is how an end was called.
type Name struct {
	Kind               Kind
	Cluster, Namespace string // of a pod; Cluster "" = any
	Name               string // of a pod or node
	Address            netip.Addr
}

const endsHelp = "want namespace/pod, cluster/namespace/pod, an IP address, node/NAME, host or world"

// ParseEnd reads FROM or TO.
func ParseEnd(text string) (Name, error) {
	switch text {
	case "":
		return Name{}, errors.New("an end is missing: " + endsHelp)
	case "world":
		return Name{Kind: KindWorld}, nil
	case "host":
		return Name{Kind: KindHost}, nil
	}
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return Name{Kind: KindAddress, Address: a.Unmap().WithZone("")}, nil
	}
	parts := strings.Split(text, "/")
	for _, p := range parts {
		if p == "" {
			return Name{}, fmt.Errorf("%q is no end: %s", text, endsHelp)
		}
	}
	switch {
	case len(parts) == 2 && parts[0] == "node":
		return Name{Kind: KindNode, Name: parts[1]}, nil
	case len(parts) == 2:
		return Name{Kind: KindPod, Namespace: parts[0], Name: parts[1]}, nil
	case len(parts) == 3:
		return Name{Kind: KindPod, Cluster: parts[0], Namespace: parts[1], Name: parts[2]}, nil
	}
	return Name{}, fmt.Errorf("%q is no end: %s", text, endsHelp)
}

// Port is what is connected to: a number, or a name among the ports of the pod.
type Port struct {
	Protocol clustermesh.Protocol // 0: any, the name says
	Number   uint16
	Name     string
}

// ICMP as a protocol of questions, in both families: rules by port never match.
const (
	ICMP   clustermesh.Protocol = 1
	ICMPv6 clustermesh.Protocol = 58
)

const portsHelp = "want 80, 80/tcp, 53/udp, a named port like http, or icmp"

// ParsePort reads PORT; protocol is for those who say it apart, else "".
func ParsePort(text, protocol string) (Port, error) {
	if port, proto, both := strings.Cut(text, "/"); both {
		if protocol != "" && !strings.EqualFold(protocol, proto) {
			return Port{}, fmt.Errorf("port %q and protocol %q differ", text, protocol)
		}
		text, protocol = port, proto
		if port == "" || proto == "" {
			return Port{}, fmt.Errorf("port %q is half a port: %s", text, portsHelp)
		}
	}
	if strings.EqualFold(text, "icmp") && protocol == "" {
		text, protocol = "", "icmp"
	}
	p := Port{}
	switch strings.ToLower(protocol) {
	case "":
	case "tcp":
		p.Protocol = clustermesh.TCP
	case "udp":
		p.Protocol = clustermesh.UDP
	case "sctp":
		p.Protocol = clustermesh.SCTP
	case "icmp", "icmpv6":
		if text != "" {
			return Port{}, errors.New("icmp has no ports")
		}
		return Port{Protocol: ICMP}, nil
	default:
		return Port{}, fmt.Errorf("protocol %q is not tcp, udp, sctp or icmp", protocol)
	}
	if text == "" {
		return Port{}, errors.New("the port is missing: " + portsHelp)
	}
	n, err := strconv.ParseUint(text, 10, 32)
	switch {
	case err == nil && (n == 0 || n > 65535):
		return Port{}, fmt.Errorf("port %s is not 1 to 65535", text)
	case err == nil:
		if p.Number = uint16(n); p.Protocol == 0 {
			p.Protocol = clustermesh.TCP
		}
	case !isPortName(text):
		return Port{}, fmt.Errorf("%q is no port: %s", text, portsHelp)
	default:
		p.Name = text
	}
	return p, nil
}

// isPortName: at most 15 letters, digits and dashes, with a letter.
func isPortName(s string) bool {
	letter := false
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z':
			letter = true
		case r == '-', r >= '0' && r <= '9':
		default:
			return false
		}
	}
	return letter && len(s) <= 15
}

// resolve finds the number of a port among those of the end that is connected to.
func (p Port) resolve(to *End) (Port, error) {
	if p.Name == "" {
		return p, nil
	}
	for _, have := range to.Ports {
		if have.Name == p.Name && (p.Protocol == 0 || p.Protocol == have.Protocol) {
			return Port{have.Protocol, have.Port, p.Name}, nil
		}
	}
	var names []string
	for _, have := range to.Ports {
		names = append(names, fmt.Sprintf("%s (%d/%s)", have.Name, have.Port, protocolText(have.Protocol)))
	}
	known := "it names no ports"
	if names != nil {
		known = "it has " + strings.Join(names, ", ")
	}
	return p, fmt.Errorf("%s has no port called %q: %s", to.Name, p.Name, known)
}

func protocolText(p clustermesh.Protocol) string {
	switch p {
	case ICMP, ICMPv6:
		return "icmp"
	}
	return strings.ToLower(p.String())
}

func (p Port) String() string {
	if p.Protocol == ICMP || p.Protocol == ICMPv6 {
		return "icmp"
	}
	s := fmt.Sprintf("%d/%s", p.Number, protocolText(p.Protocol))
	if p.Name != "" {
		s += " (" + p.Name + ")"
	}
	return s
}
