package clustermesh

import (
	"errors"
	"unicode/utf8"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// The kinds of scope local alone.

func (d *decoder) decodePeer(name string, plain []byte) (Record, error) {
	m := &d.pb.peer
	*m = pb.Peer{}
	if err := m.UnmarshalVT(plain); err != nil {
		return nil, err
	}
	var c checker
	if m.Name != name {
		c.fail("the record is of peer %s, its key of %s", quote(m.Name), quote(name))
	}
	r := &Peer{
		Name: m.Name, ID: c.clusterID(m.Id), CABundle: m.CaBundle,
		MeshAddresses: c.names("mesh addresses", m.MeshAddresses, nil), PodPrefixes: c.prefixes("pod prefixes", m.PodPrefixes),
		MaxKeys: m.MaxKeys, MaxBytes: m.MaxBytes, Joined: Origin(m.Joined).Time(), Origin: Origin(m.Origin),
	}
	if len(r.CABundle) == 0 {
		r.CABundle = nil
	}
	return r, c.err
}

func (d *decoder) decodeWorkload(name string, plain []byte) (Record, error) {
	m := &d.pb.workload
	*m = pb.Workload{}
	if err := m.UnmarshalVTUnsafe(plain); err != nil {
		return nil, err
	}
	var c checker
	c.text("node", m.Node, maxText)
	c.text("owner", m.Owner, maxText)
	ns, pod := cutName(name)
	r := &Workload{
		Namespace: d.in.string(ns), Name: d.in.unique(pod), Node: d.in.string(m.Node), Owner: d.in.unique(m.Owner),
		HostNetwork: m.HostNetwork, HostPorts: c.hostPorts(m.HostPorts), Origin: Origin(m.Origin),
	}
	if p := m.Readiness; p != nil {
		c.text("probe kind", p.Kind, maxText)
		c.text("probe path", p.Path, maxLongText)
		if p.SuccessThreshold > 1<<16 || p.FailureThreshold > 1<<16 {
			c.fail("probe threshold above 65536")
		}
		r.Readiness = &Probe{
			Kind: d.in.string(p.Kind), Port: c.port("probe port", p.Port, 1), Path: d.in.unique(p.Path),
			Period: c.seconds("probe period", p.PeriodSeconds), Timeout: c.seconds("probe timeout", p.TimeoutSeconds),
			InitialDelay:     c.seconds("probe initial delay", p.InitialDelaySeconds),
			SuccessThreshold: int(p.SuccessThreshold), FailureThreshold: int(p.FailureThreshold),
		}
	}
	return r, c.err
}

func (d *decoder) decodePolicy(name string, plain []byte) (Record, error) {
	m := &d.pb.policy
	*m = pb.Policy{}
	if err := m.UnmarshalVT(plain); err != nil {
		return nil, err
	}
	if !utf8.Valid(m.Json) {
		return nil, errors.New("policy is not UTF-8")
	}
	ns, policy := cutName(name)
	r := &Policy{Namespace: d.in.string(ns), Name: d.in.unique(policy), JSON: m.Json, Origin: Origin(m.Origin)}
	if len(r.JSON) == 0 {
		r.JSON = nil
	}
	return r, nil
}

func (d *decoder) decodeClusterPolicy(name string, plain []byte) (Record, error) {
	m := &d.pb.clusterPolicy
	*m = pb.ClusterPolicy{}
	if err := m.UnmarshalVT(plain); err != nil {
		return nil, err
	}
	if !utf8.Valid(m.Json) {
		return nil, errors.New("policy is not UTF-8")
	}
	r := &ClusterPolicy{Name: d.in.unique(name), JSON: m.Json, Origin: Origin(m.Origin)}
	if len(r.JSON) == 0 {
		r.JSON = nil
	}
	return r, nil
}
