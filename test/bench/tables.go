package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/bpf"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// kernel loads the programs into a cgroup and a BPF filesystem of our own.
func kernel() (objs *bpf.Objects, cgroup string, cleanup func(), err error) {
	dir, err := os.MkdirTemp("", "tombolo-bench-")
	if err != nil {
		return nil, "", nil, err
	}
	undo := []func(){func() { os.RemoveAll(dir) }}
	cleanup = func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}
	fail := func(err error) (*bpf.Objects, string, func(), error) { cleanup(); return nil, "", nil, err }
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fail(fmt.Errorf("mount bpffs: %w", err))
	}
	undo = append(undo, func() { unix.Unmount(dir, unix.MNT_DETACH) })
	root, err := bpf.FindCgroup2()
	if err != nil {
		return fail(err)
	}
	cgroup = filepath.Join(root, filepath.Base(dir))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return fail(err)
	}
	undo = append(undo, func() { unix.Rmdir(cgroup) })
	objs, err = bpf.Load(bpf.Options{PinDir: filepath.Join(dir, "tombolo"), CgroupPath: cgroup,
		Sizes: bpf.Sizes{Services: 1 << 18, Slots: 1 << 20}})
	if err != nil {
		return fail(err)
	}
	undo = append(undo, func() { objs.Close(); bpf.Unload(filepath.Join(dir, "tombolo")) })
	return objs, cgroup, cleanup, nil
}

// tables writes services with four backends each into empty maps, and then has
// an agent do it from records.
func tables(ctx context.Context, b *bench) error {
	const services, backends = 50_000, 4
	store, node, err := ownCluster(ctx, scale{nodes: large.nodes, services: services, endpoints: backends})
	if err != nil {
		return err
	}
	var writes, updates, whole []float64
	for range b.runs {
		objs, _, cleanup, err := kernel()
		if err != nil {
			return err
		}
		t := linux.NewTables(objs.Maps, new(linux.Device))
		begin := time.Now()
		err = putServices(t, services, backends, 1)
		writes = append(writes, services/time.Since(begin).Seconds())
		if err == nil {
			begin = time.Now()
			err = putServices(t, services, backends, 2)
			updates = append(updates, services/time.Since(begin).Seconds())
		}
		cleanup()
		if err != nil {
			return err
		}
		took, err := wholeAgent(ctx, store, node, services)
		if err != nil {
			return err
		}
		whole = append(whole, services/took.Seconds())
	}
	report([]string{fmt.Sprintf("%d new services with %d backends, from wanted rows", services, backends), stats.Spread(writes, "services/s")},
		[]string{"all of them changed", stats.Spread(updates, "services/s")},
		[]string{"from records: list, decode, merge, rows, maps", stats.Spread(whole, "services/s")},
		[]string{"aim (rows into maps)", "150000 services/s"}, []string{incumbent("into maps"), "15000 services/s"})
	return nil
}

func putServices(t agent.Tables, services, backends int, generation byte) error {
	slots := make(map[agent.SlotKey]agent.SlotRow, services*backends)
	rows := make(map[agent.ServiceKey]agent.ServiceRow, services)
	for i := range services {
		id := agent.ServiceID(serviceName(i), "http", clustermesh.TCP, false)
		for s := range backends {
			slots[agent.SlotKey{Service: id, Cluster: 1, Slot: uint32(s)}] = agent.SlotRow{
				Addr: agent.MakeAddr(pod(clustermesh.ID(generation), i)), Port: 8080, Cluster: 1, Node: uint16(s + 1)}
		}
		frontend := [16]byte{10: 0xff, 11: 0xff, 12: 172, 13: 20 + byte(i>>16), 14: byte(i >> 8), 15: byte(i)}
		rows[agent.ServiceKey{Addr: frontend, Port: 80, Proto: 6}] = agent.ServiceRow{ID: id, NumTiers: 1,
			Tiers:  [agent.MaxTiers]agent.Tier{{Groups: 1, Share: clustermesh.ShareAll}},
			Groups: [agent.MaxGroups]agent.Group{{Cluster: 1, Weight: uint16(generation), Count: uint32(backends)}}}
	}
	if err := t.Slots.Put(slots); err != nil {
		return err
	}
	return t.Services.Put(rows)
}
