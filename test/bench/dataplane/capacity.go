package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/bpf"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// extent is how much a mesh holds; Nodes are those of each cluster.
type extent struct{ Clusters, Nodes, Services, Backends, Addresses int }

// small is what a change is compared with, large what must fit.
var (
	small = extent{4, 250, 100, 10, 4000}
	large = extent{4, 250, 100_000, 10, 1_000_000}
)

// large is what must fit; quick runs are about the change.
func (o *options) large() extent {
	if o.quick {
		return extent{4, 250, 10_000, 10, 100_000}
	}
	return large
}

const (
	changes     = 200 // of each kind, by turns
	loadLimit   = 10 * time.Second
	changeLimit = 1.5 // how many times a change among few
)

// capacityFigures are those of one extent.
type capacityFigures struct {
	extent
	RowsMS    float64   // the rows, ready, into empty maps
	LoadMS    float64   // an agent from its start until all is in the maps
	LoadCPUMS float64   // and what it worked for that
	MapsMiB   float64   // memory of the maps, as the kernel counts it
	BackendUS []float64 // a changed slice in the store until its slots are in the map
	AddressUS []float64 // a changed address in the store until its row is in the map
}

// held is an agent with real maps, and the stores it follows.
type held struct {
	extent
	stores connector
	maps   *bpf.Maps
	stop   func()
}

// capacity loads both extents, and then changes one thing in each by turns.
func (r *runner) capacity(ctx context.Context) error {
	var both []*held
	defer func() {
		for _, h := range both {
			h.stop()
		}
	}()
	for _, e := range []extent{small, r.opts.large()} {
		rows, err := r.rowsIntoMaps(e)
		if err != nil {
			return fmt.Errorf("rows of %d services: %w", e.Services, err)
		}
		h, took, work, err := r.hold(ctx, e)
		if err != nil {
			return fmt.Errorf("agent with %d services: %w", e.Services, err)
		}
		both = append(both, h)
		r.out.Capacity = append(r.out.Capacity, capacityFigures{extent: e, RowsMS: stats.MS(rows), LoadMS: stats.MS(took), LoadCPUMS: stats.MS(work), MapsMiB: memory(h.maps)})
		progress("capacity: %d services with %d backends, %d addresses: rows %v, agent %v, CPU %v", e.Services, e.Backends, e.Addresses,
			rows.Round(time.Millisecond), took.Round(time.Millisecond), work.Round(time.Millisecond))
	}
	runtime.GC() // what loading left is not a change's to clear away
	for n := range changes {
		for i, h := range both {
			figures := &r.out.Capacity[i]
			took, err := h.changeBackends(ctx, n)
			if err != nil {
				return err
			}
			figures.BackendUS = append(figures.BackendUS, 1000*stats.MS(took))
			if took, err = h.changeAddress(ctx, n); err != nil {
				return err
			}
			figures.AddressUS = append(figures.AddressUS, 1000*stats.MS(took))
		}
	}
	return nil
}

// load makes maps of an extent's size, in a folder of its own.
func (r *runner) load(e extent, name string) (*bpf.Objects, func(), error) {
	cgroup, err := sub(r.place.cgroup, name)
	if err != nil {
		return nil, nil, err
	}
	pins := filepath.Join(r.place.bpffs, name)
	room := func(n int) uint32 { return uint32(n + n/4 + 1024) }
	objs, err := bpf.Load(bpf.Options{PinDir: pins, CgroupPath: cgroup,
		Sizes: bpf.Sizes{Services: room(e.Services), Slots: room(e.Services * e.Backends), IPCache: room(e.Addresses)}})
	if err != nil {
		os.Remove(cgroup)
		return nil, nil, err
	}
	return objs, func() { objs.Close(); bpf.Unload(pins); os.Remove(cgroup) }, nil
}

// rowsIntoMaps times the writing of rows that are ready.
func (r *runner) rowsIntoMaps(e extent) (time.Duration, error) {
	objs, unload, err := r.load(e, fmt.Sprint("rows-", e.Services))
	if err != nil {
		return 0, err
	}
	defer unload()
	t := linux.NewTables(objs.Maps, new(linux.Device))
	slots := make(map[agent.SlotKey]agent.SlotRow, e.Services*e.Backends)
	services := make(map[agent.ServiceKey]agent.ServiceRow, e.Services)
	for i := range e.Services {
		key, row := serviceRow(i, e.Backends)
		services[key] = row
		for b := range e.Backends {
			slots[agent.SlotKey{Service: row.ID, Cluster: 1, Slot: uint32(b)}] = agent.SlotRow{Addr: agent.MakeAddr(e.address(e.backend(i, b))), Port: serverPort, Cluster: 1, Node: 1}
		}
	}
	ips := make(map[agent.Addr]agent.IPCacheRow, e.Addresses)
	for i := range e.Addresses {
		ips[agent.MakeAddr(e.address(i))] = agent.IPCacheRow{Identity: uint32(e.identity(i, i%100_000+1)), Node: uint16(e.node(i) + 1)}
	}
	begin := time.Now()
	for _, put := range []func() error{func() error { return t.IPs.Put(ips) }, func() error { return t.Slots.Put(slots) }, func() error { return t.Services.Put(services) }} {
		if err := put(); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// hold starts an agent that follows stores with an extent's records, and returns
// once all are in the maps: how long that took, and how much CPU.
func (r *runner) hold(ctx context.Context, e extent) (h *held, took, work time.Duration, err error) {
	h = &held{extent: e, stores: connector{}}
	for c := range e.Clusters {
		store := kvstore.NewMemory(kvstore.MemoryOptions{})
		h.stores[clusterName(c)] = store
		if err := putAll(ctx, store, e.records(c)...); err != nil {
			return nil, 0, 0, err
		}
	}
	objs, unload, err := r.load(e, fmt.Sprint("agent-", e.Services))
	if err != nil {
		return nil, 0, 0, err
	}
	h.maps = objs.Maps
	t, real := agent.NewFakes(), linux.NewTables(objs.Maps, new(linux.Device))
	t.IPs, t.IPPrefixes, t.Slots, t.Services = real.IPs, real.IPPrefixes, real.Slots, real.Services
	a, err := agent.New(agent.Config{Cluster: clusterName(0), ClusterID: 1, Node: nodeOf(0), Connector: h.stores, Resync: -1}, t)
	if err != nil {
		unload()
		return nil, 0, 0, err
	}
	runtime.GC()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	begin, worked := time.Now(), cpuTime()
	go func() {
		defer close(done)
		a.Run(ctx)
	}()
	h.stop = func() { cancel(); <-done; unload() }
	// Some of each first, so that looking at all of them is no part of the time,
	// unless it turns out that some were not there yet.
	_, err = h.complete(ctx, 991)
	took, work = time.Since(begin), cpuTime()-worked
	if err == nil {
		var waited bool
		if waited, err = h.complete(ctx, 1); waited {
			took, work = time.Since(begin), cpuTime()-worked
		}
	}
	if err != nil {
		h.stop()
		return nil, 0, 0, err
	}
	return h, took, work, nil
}

// complete waits until every so-many-th service and address has its row.
func (h *held) complete(ctx context.Context, step int) (waited bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	wait := func(m *ebpf.Map, key any) error {
		w, err := await(ctx, m, key, time.Millisecond, func([]byte) bool { return true })
		waited = waited || w
		return err
	}
	for i := h.Services - 1; i >= 0; i -= step {
		key, _ := serviceRow(i, h.Backends)
		if err := wait(h.maps.Services, &bpf.ServiceKey{Addr: bpf.Addr{B: key.Addr}, Port: swap(key.Port), Proto: key.Proto}); err != nil {
			return waited, fmt.Errorf("service %d: %w", i, err)
		}
	}
	for i := h.Addresses - 1; i >= 0; i -= step {
		if err := wait(h.maps.IPCache, &bpf.Addr{B: agent.MakeAddr(h.address(i))}); err != nil {
			return waited, fmt.Errorf("address %v: %w", h.address(i), err)
		}
	}
	return waited, nil
}

// await looks, so often, until the row is there and as it should be.
func await(ctx context.Context, m *ebpf.Map, key any, every time.Duration, ok func([]byte) bool) (waited bool, err error) {
	for {
		row, err := m.LookupBytes(key)
		if err != nil || row != nil && ok(row) {
			return waited, err
		}
		if ctx.Err() != nil {
			return waited, errors.New("did not come in time")
		}
		waited = true
		time.Sleep(every)
	}
}

// cpuTime is what this process has worked.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// soon is how often a change is looked for.
const soon = 20 * time.Microsecond

// changeBackends gives the backends of a service another port.
func (h *held) changeBackends(ctx context.Context, n int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	i := n * 37 % h.Services
	port := uint16(9000 + n)
	_, row := serviceRow(i, h.Backends)
	begin := time.Now()
	if err := putAll(ctx, h.stores[clusterName(0)], keyed(0, clustermesh.ScopeExport, h.slice(i, port))); err != nil {
		return 0, err
	}
	for b := range h.Backends {
		key := bpf.SlotKey{Service: row.ID, Cluster: 1, Slot: uint32(b)}
		if _, err := await(ctx, h.maps.Slots, &key, soon, func(row []byte) bool { return binary.BigEndian.Uint16(row[16:]) == port }); err != nil {
			return 0, fmt.Errorf("slot %d of service %d: %w", b, i, err)
		}
	}
	return time.Since(begin), nil
}

// changeAddress gives an address another identity.
func (h *held) changeAddress(ctx context.Context, n int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	i := n * 37 % h.Addresses
	c, identity := h.clusterOf(i), h.identity(i, 500_000+n)
	begin := time.Now()
	if err := putAll(ctx, h.stores[clusterName(c)], keyed(c, clustermesh.ScopeExport, h.record(i, identity))); err != nil {
		return 0, err
	}
	_, err := await(ctx, h.maps.IPCache, &bpf.Addr{B: agent.MakeAddr(h.address(i))}, soon, func(row []byte) bool {
		return binary.NativeEndian.Uint32(row) == uint32(identity)
	})
	return time.Since(begin), err
}

// memory of all maps.
func memory(m *bpf.Maps) float64 {
	total := 0.0
	for _, one := range []*ebpf.Map{m.Services, m.Slots, m.IPCache} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", one.FD()))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			var n float64
			if _, err := fmt.Sscanf(line, "memlock: %f", &n); err == nil {
				total += n
			}
		}
	}
	return total / (1 << 20)
}

func printCapacity(w io.Writer, all []capacityFigures) {
	rows := [][]string{{"services", "backends of each", "addresses", "rows into maps, ms", "agent from records, ms", "its CPU, ms", "maps, MiB", "one slice changed, p50 µs", "p99", "one address changed, p50 µs", "p99"}}
	for _, f := range all {
		row := []string{count(f.Services), count(f.Backends), count(f.Addresses), stats.Short(f.RowsMS), stats.Short(f.LoadMS), stats.Short(f.LoadCPUMS), stats.Short(f.MapsMiB)}
		for _, s := range [][]float64{f.BackendUS, f.AddressUS} {
			row = append(row, stats.Short(stats.Median(s)), stats.Short(stats.Quantile(s, 0.99)))
		}
		rows = append(rows, row)
	}
	fmt.Fprint(w, "\n## Capacity\n\nA change is timed from the store until all its rows are in the maps, through the whole agent, in both by turns.\n\n")
	markdown(w, rows)
}

func capacityAims(all []capacityFigures) []aim {
	if len(all) < 2 {
		return nil
	}
	few, many := all[0], all[1]
	backend, address := stats.Median(many.BackendUS)/stats.Median(few.BackendUS), stats.Median(many.AddressUS)/stats.Median(few.AddressUS)
	limit := stats.MS(loadLimit)
	return []aim{
		{fmt.Sprintf("%s services × %d backends and %s addresses load in %v", count(many.Services), many.Backends, count(many.Addresses), loadLimit),
			fmt.Sprintf("%s ms from records, %s ms from rows", stats.Short(many.LoadMS), stats.Short(many.RowsMS)), many.LoadMS < limit && many.RowsMS < limit},
		{fmt.Sprintf("one change costs what it costs with %d services (at most ×%.1f)", few.Services, changeLimit),
			fmt.Sprintf("a slice ×%.2f, an address ×%.2f", backend, address), backend <= changeLimit && address <= changeLimit},
	}
}
