package agent

import "github.com/tombolo-mesh/tombolo/clustermesh"

// HealthPort is what a load balancer asks a node about a service whose traffic
// from outside stays on the node it comes to: does it have endpoints of it.
type HealthPort struct {
	Service   clustermesh.ServiceName
	Port      uint16 // 0 = none (any more)
	Endpoints int    // on this node, ready
}

// HealthPorts answers at health check ports. See linux.HealthPorts.
type HealthPorts interface {
	// Set says what changed. It must not block.
	Set(changes []HealthPort)
	// Problems are the ports that nobody answers at.
	Problems() []clustermesh.Problem
}

func healthPort(m clustermesh.Merged, at vantage) HealthPort {
	if !m.ExternalLocal || m.HealthCheckPort == 0 {
		return HealthPort{}
	}
	return HealthPort{Port: m.HealthCheckPort, Endpoints: readyHere(m.Ports, at)}
}

// noteHealthPort remembers what changed about a service's health check port.
func (s *State) noteHealthPort(name clustermesh.ServiceName, p HealthPort) {
	p.Service = name
	old, had := s.healthPorts[name]
	switch {
	case p.Port == 0 && !had, had && old == p:
		return
	case p.Port == 0:
		delete(s.healthPorts, name)
	default:
		s.healthPorts[name] = p
	}
	s.healthPortChanges[name] = p
}

// takeHealthPorts are the changes since the last call.
func (s *State) takeHealthPorts() []HealthPort {
	if len(s.healthPortChanges) == 0 {
		return nil
	}
	out := make([]HealthPort, 0, len(s.healthPortChanges))
	for _, p := range s.healthPortChanges {
		out = append(out, p)
	}
	clear(s.healthPortChanges)
	return out
}
