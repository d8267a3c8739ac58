package main

import (
	"os"
	"path/filepath"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/bpf"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// sizes of a lane's maps. The ring of events is as small as can be: nobody reads
// it here, so it is full at once, as it is on a node where nobody watches.
var sizes = bpf.Sizes{Services: 1 << 17, Slots: 1 << 17, Policy: 1 << 14, Flows: 1 << 17, Events: 4096}

// tombolo loads the programs for a lane, into a cgroup and maps of its own, and
// writes the rows that an agent would; then it attaches what the lane has of
// them.
func (r *runner) tombolo(l *lane) error {
	cgroup, err := sub(r.place.cgroup, l.name)
	if err != nil {
		return err
	}
	l.closers = append(l.closers, func() { os.Remove(cgroup) })
	l.pins = filepath.Join(r.place.bpffs, l.name)
	var objs *bpf.Objects
	err = l.node.in(func() (err error) {
		objs, err = bpf.Load(bpf.Options{PinDir: l.pins, CgroupPath: cgroup, Sizes: sizes})
		return err
	})
	if err != nil {
		return err
	}
	l.closers = append(l.closers, func() { objs.Close(); bpf.Unload(l.pins) })
	t := linux.NewTables(objs.Maps, new(linux.Device))
	l.tables = t
	if err := putServices(t, l.world, l.Services); err != nil {
		return err
	}
	if l.Way != packet {
		l.cgroup = cgroup
	}
	if l.Way == socket {
		return nil
	}
	if err := putPods(t, l.world, l.Rules); err != nil {
		return err
	}
	return l.node.in(func() error {
		for _, p := range []agent.LocalPod{l.serverPod, l.clientPod} {
			if err := objs.AttachPod(int(p.IfIndex)); err != nil {
				return err
			}
		}
		return nil
	})
}

// putServices writes n services that have the server pod as their backend.
func putServices(t agent.Tables, w *world, n int) error {
	slots := make(map[agent.SlotKey]agent.SlotRow, n)
	rows := make(map[agent.ServiceKey]agent.ServiceRow, n)
	for i := range n {
		key, row := serviceRow(i, 1)
		rows[key] = row
		slots[agent.SlotKey{Service: row.ID, Cluster: 1}] = agent.SlotRow{
			Addr: agent.MakeAddr(w.backend().Addr()), Port: w.backend().Port(), Cluster: 1, Node: 1}
	}
	if err := t.Slots.Put(slots); err != nil {
		return err
	}
	return t.Services.Put(rows)
}

// serviceRow is service i with so many backends of this cluster.
func serviceRow(i, backends int) (agent.ServiceKey, agent.ServiceRow) {
	f := frontend(i)
	return agent.ServiceKey{Addr: agent.MakeAddr(f.Addr()), Port: f.Port(), Proto: tcp},
		agent.ServiceRow{ID: agent.ServiceID(named(i), "http", clustermesh.TCP, false), NumTiers: 1,
			Tiers:  [agent.MaxTiers]agent.Tier{{Groups: 1, Share: clustermesh.ShareAll}},
			Groups: [agent.MaxGroups]agent.Group{{Cluster: 1, Weight: 1, Count: uint32(backends)}}}
}

const (
	tcp            = 6
	clientIdentity = 1<<20 | 10
	serverIdentity = 1<<20 | 11
	clientSubject  = 1
	serverSubject  = 2
)

// putPods writes who the pods are and what they may. With rules, both ends are
// isolated, and of each end's rules one allows this traffic; the others are for
// other peers.
func putPods(t agent.Tables, w *world, rules int) error {
	if err := t.Config.Put(map[agent.ConfigKey]agent.ConfigRow{{}: {Tunnel4: agent.MakeAddr(tunnelAddress), Cluster: 1, Node: 1}}); err != nil {
		return err
	}
	endpoints, ips := map[agent.Addr]agent.EndpointRow{}, map[agent.Addr]agent.IPCacheRow{}
	for _, e := range []struct {
		agent.LocalPod
		identity uint32
		subject  uint64
	}{{w.clientPod, clientIdentity, clientSubject}, {w.serverPod, serverIdentity, serverSubject}} {
		row := agent.EndpointRow{IfIndex: e.IfIndex, PodMAC: e.PodMAC, HostMAC: e.HostMAC, Identity: e.identity}
		if rules > 0 {
			row.Subject = e.subject
		}
		a := agent.MakeAddr(e.Addresses[0])
		endpoints[a], ips[a] = row, agent.IPCacheRow{Identity: e.identity, Node: 1, Flags: agent.IPHere}
	}
	if err := t.Policy.Put(policyRows(rules)); err != nil {
		return err
	}
	if err := t.IPs.Put(ips); err != nil {
		return err
	}
	if rules > 0 {
		err := t.Subjects.Put(map[agent.SubjectKey]agent.SubjectRow{clientSubject: {Flags: agent.IsolatedOut}, serverSubject: {Flags: agent.IsolatedIn}})
		if err != nil {
			return err
		}
	}
	return t.Endpoints.Put(endpoints)
}

func policyRows(rules int) map[agent.PolicyKey]agent.PolicyRow {
	rows := make(map[agent.PolicyKey]agent.PolicyRow, 2*rules)
	for i := range rules {
		out, in := uint32(serverIdentity), uint32(clientIdentity)
		if i > 0 {
			out, in = uint32(1<<20|1000+i), uint32(1<<20|1000+i)
		}
		allow := agent.PolicyRow{Allow: uint32(i + 1)}
		rows[agent.PolicyKey{Subject: clientSubject, Peer: agent.PolicyPeer(out), Dir: agent.Egress, Proto: tcp, Bits: 16, Port: serverPort}] = allow
		rows[agent.PolicyKey{Subject: serverSubject, Peer: agent.PolicyPeer(in), Dir: agent.Ingress, Proto: tcp, Bits: 16, Port: serverPort}] = allow
	}
	return rows
}
