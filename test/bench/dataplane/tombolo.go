package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/bpf"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// tombolo loads the programs for a lane, into a cgroup and maps of its own, and
// writes the rows that an agent would.
func (r *runner) tombolo(l *lane) error {
	name := fmt.Sprintf("%s-%d-%d", l.Way, l.Services, l.Rules)
	cgroup, err := sub(r.place.cgroup, name)
	if err != nil {
		return err
	}
	l.closers = append(l.closers, func() { os.Remove(cgroup) })
	pins := filepath.Join(r.place.bpffs, name)
	var objs *bpf.Objects
	err = l.node.in(func() (err error) {
		objs, err = bpf.Load(bpf.Options{PinDir: pins, CgroupPath: cgroup, Sizes: bpf.Sizes{Services: 1 << 17, Slots: 1 << 17}})
		return err
	})
	if err != nil {
		return err
	}
	l.closers = append(l.closers, func() { objs.Close(); bpf.Unload(pins) })
	if l.Way != packet {
		l.cgroup = cgroup
	}
	return putServices(linux.NewTables(objs.Maps, new(linux.Device)), l.world, l.Services)
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
	id := agent.ServiceID(clustermesh.ServiceName{Namespace: "bench", Name: serviceName(i)}, "http", clustermesh.TCP, false)
	return agent.ServiceKey{Addr: agent.MakeAddr(f.Addr()), Port: f.Port(), Proto: 6},
		agent.ServiceRow{ID: id, NumTiers: 1, Tiers: [agent.MaxTiers]agent.Tier{{Groups: 1, Share: clustermesh.ShareAll}},
			Groups: [agent.MaxGroups]agent.Group{{Cluster: 1, Weight: 1, Count: uint32(backends)}}}
}
