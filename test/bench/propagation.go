package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
	"github.com/tombolo-mesh/tombolo/test/bench/stats"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

// propagation times a manifest's change until the row is in the kernel: file →
// mesh API server → its etcd (fsync on) → watch cache → mutual TLS → agent → BPF
// map, in three processes. The clock starts before the file is written. Beside
// it, a put into a bare etcd process until its watch event is back.
//
// The manifests lie on a tmpfs, so that the disk has etcd's writes and no others;
// on the disk that etcd writes to, replacing a file makes the file system write
// data at once, for which etcd's fsync then waits. That is measured as well.
func propagation(ctx context.Context, b *bench) error {
	ours, cleanup, err := newChain(ctx, b)
	if err != nil {
		return err
	}
	defer cleanup()
	bare, stop, err := newBareEtcd(ctx)
	if err != nil {
		return err
	}
	defer stop()
	const changes = 500
	var took [2][3]latencies
	for range b.runs {
		for i, pace := range []time.Duration{0, 5 * time.Millisecond} {
			for j, change := range []func(context.Context) (time.Duration, error){
				func(ctx context.Context) (time.Duration, error) { return ours.change(ctx, ours.memory) }, bare.change,
				func(ctx context.Context) (time.Duration, error) { return ours.change(ctx, ours.disk) },
			} {
				sample, err := paced(ctx, changes, pace, change)
				if err != nil {
					return err
				}
				took[i][j].add(sample)
			}
		}
	}
	rows := [][]string{{fmt.Sprintf("%d changes a run", changes), "p50", "p99", "× bare p50", "× bare p99"}}
	aims := []string{"0.8 / 4 ms, at most 2 × / 3 ×", "1.5 / 5 ms, at most 2 × / 3 ×"}
	for i, name := range []string{"back to back", "one per 5 ms"} {
		o, e, d := took[i][0], took[i][1], took[i][2]
		rows = append(rows, o.row(name+": source → BPF map", &e), e.row(name+": bare etcd, put → event", nil),
			d.row(name+": the manifests on etcd's disk", &e), []string{name + ": aim", aims[i]})
	}
	rows = append(rows, []string{incumbent("to its consumer's callback, no map written"), "0.95 ms", "5.6 ms"})
	report(rows...)
	return nil
}

// latencies are the quantiles of some runs.
type latencies struct{ p50, p99 []float64 }

func (l *latencies) add(sample []time.Duration) {
	l.p50 = append(l.p50, stats.MS(stats.Quantile(sample, 0.5)))
	l.p99 = append(l.p99, stats.MS(stats.Quantile(sample, 0.99)))
}

// row compares with the same of a yardstick, run by run.
func (l *latencies) row(name string, yardstick *latencies) []string {
	row := []string{name, stats.Spread(l.p50, "ms"), stats.Spread(l.p99, "ms")}
	if yardstick != nil {
		row = append(row, stats.Spread(stats.Ratios(l.p50, yardstick.p50), ""), stats.Spread(stats.Ratios(l.p99, yardstick.p99), ""))
	}
	return row
}

// paced makes n changes, one after the other, at least pace apart.
func paced(ctx context.Context, n int, pace time.Duration, change func(context.Context) (time.Duration, error)) ([]time.Duration, error) {
	var took []time.Duration
	for range n {
		begin := time.Now()
		d, err := change(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, d)
		if rest := pace - time.Since(begin); rest > 0 {
			time.Sleep(rest)
		}
	}
	return took, nil
}

// chain is one cluster with one node, and its kernel's slots.
type chain struct {
	lab          *lab.Lab
	cluster      *lab.Cluster
	maps         *bpf.Maps
	memory, disk *probe
	n            int
}

// probe is a service whose only backend changes.
type probe struct {
	name   string
	folder string // of its slice's manifest
	key    bpf.SlotKey
}

func newChain(ctx context.Context, b *bench) (*chain, func(), error) {
	l, err := lab.New(ctx, lab.Options{BinDir: b.binDir})
	if err != nil {
		return nil, nil, err
	}
	cleanup := func() { l.Close() }
	fail := func(err error) (*chain, func(), error) { cleanup(); return nil, nil, err }
	c, err := l.AddCluster("aws", 1)
	if err != nil {
		return fail(err)
	}
	ch := &chain{lab: l, cluster: c}
	memory, disk := filepath.Join(c.Manifests, "memory"), filepath.Join(c.Manifests, "disk")
	if err := errors.Join(os.Mkdir(memory, 0o700), os.Mkdir(disk, 0o700)); err != nil {
		return fail(err)
	}
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, "mode=0700,size=16m"); err != nil {
		return fail(fmt.Errorf("mount a tmpfs for manifests: %w", err))
	}
	cleanup = func() {
		unix.Unmount(memory, unix.MNT_DETACH)
		l.Close()
	}
	ch.memory, ch.disk = newProbe(c, "memory", memory), newProbe(c, "disk", disk)
	for i, p := range []*probe{ch.memory, ch.disk} {
		if err := c.Apply("service-"+p.name, p.service(fmt.Sprintf("172.20.1.%d", i+1))); err != nil {
			return fail(err)
		}
	}
	if err := c.Start(ctx); err != nil {
		return fail(err)
	}
	if ch.maps, err = bpf.OpenMaps(c.Nodes[0].PinDir()); err != nil {
		return fail(err)
	}
	undo := cleanup
	cleanup = func() { ch.maps.Close(); undo() }
	for range 50 { // warm
		for _, p := range []*probe{ch.memory, ch.disk} {
			if _, err := ch.change(ctx, p); err != nil {
				return fail(err)
			}
		}
	}
	return ch, cleanup, nil
}

func newProbe(c *lab.Cluster, name, folder string) *probe {
	id := agent.ServiceID(clustermesh.ServiceName{Namespace: "default", Name: name}, "http", clustermesh.TCP, false)
	return &probe{name: name, folder: folder, key: bpf.SlotKey{Service: id, Cluster: uint16(c.ID)}}
}

func (p *probe) service(address string) string {
	return lab.Manifest(lab.Object{"apiVersion": "v1", "kind": "Service",
		"metadata": lab.Object{"name": p.name, "namespace": "default"},
		"spec":     lab.Object{"clusterIP": address, "clusterIPs": []string{address}, "ports": []lab.Object{{"name": "http", "port": 80, "protocol": "TCP"}}}})
}

func (p *probe) slice(backend netip.Addr) string {
	return lab.Manifest(lab.Object{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata":  lab.Object{"name": p.name + "-1", "namespace": "default", "labels": lab.Object{"kubernetes.io/service-name": p.name}},
		"ports":     []lab.Object{{"name": "http", "port": 8080, "protocol": "TCP"}},
		"endpoints": []lab.Object{{"addresses": []string{backend.String()}, "nodeName": "n1", "conditions": lab.Object{"ready": true}}}})
}

// change writes the slice with another address, as `kubectl` would a file: under
// another name, then renamed. It waits for the address in the map.
func (c *chain) change(ctx context.Context, p *probe) (time.Duration, error) {
	c.n++
	addr := netip.AddrFrom4([4]byte{10, byte(c.cluster.ID), 1, byte(10 + c.n%200)})
	text, want := []byte(p.slice(addr)), addr.As16()
	path := filepath.Join(p.folder, "slice.yaml")
	wait := newWait()
	defer wait.end()
	begin := time.Now()
	if err := os.WriteFile(path+".tmp", text, 0o600); err != nil {
		return 0, err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return 0, err
	}
	var slot bpf.Slot
	for {
		if err := c.maps.Slots.Lookup(&p.key, &slot); err == nil && slot.Addr.B == want {
			return time.Since(begin), ctx.Err()
		}
		if time.Since(begin) > 10*time.Second {
			return 0, fmt.Errorf("change %d did not reach the map within 10 s", c.n)
		}
		wait.nap()
	}
}

// wait sleeps for a few microseconds: a Go timer, and the slack that the kernel
// gives each sleeper, would add a tenth of a millisecond to what is measured.
type wait struct{}

func newWait() wait {
	runtime.LockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	return wait{}
}

func (wait) nap() {
	unix.Nanosleep(&unix.Timespec{Nsec: 20_000}, nil)
}

func (wait) end() {
	unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // the default
	runtime.UnlockOSThread()
}

// bareEtcd is an etcd process of its own, and a watch on it.
type bareEtcd struct {
	store  kvstore.Store
	events chan kvstore.Event
	n      int
}

func newBareEtcd(ctx context.Context) (*bareEtcd, func(), error) {
	endpoint, stop, err := etcdProcess(ctx)
	if err != nil {
		return nil, nil, err
	}
	store, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{endpoint}})
	if err != nil {
		stop()
		return nil, nil, err
	}
	watch, cancel := context.WithCancel(ctx)
	e := &bareEtcd{store: store, events: make(chan kvstore.Event, 1)}
	at, err := store.Commit(ctx, kvstore.Put("/bench/first", nil, 0))
	if err != nil {
		cancel()
		stop()
		return nil, nil, err
	}
	go func() {
		for batch, err := range store.Watch(watch, "/bench/", at) {
			if err != nil {
				return
			}
			for _, ev := range batch.Events {
				e.events <- ev
			}
		}
	}()
	return e, func() { cancel(); store.Close(); stop() }, nil
}

func (e *bareEtcd) change(ctx context.Context) (time.Duration, error) {
	e.n++
	begin := time.Now()
	if _, err := e.store.Commit(ctx, kvstore.Put("/bench/key", fmt.Appendf(nil, "%0200d", e.n), 0)); err != nil {
		return 0, err
	}
	select {
	case <-e.events:
		return time.Since(begin), nil
	case <-time.After(10 * time.Second):
		return 0, fmt.Errorf("no watch event within 10 s")
	}
}

// etcdProcess starts an etcd as a process of its own, fsync on.
func etcdProcess(ctx context.Context) (endpoint string, stop func(), err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "tombolo-bench-")
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, exe, "bench-child", "etcd", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	stop = func() { cmd.Process.Kill(); cmd.Wait(); os.RemoveAll(dir) }
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("etcd process: %w", err)
	}
	return strings.TrimSpace(line), stop, nil
}

// etcdChild is that process; it ends with its parent's pipe.
func etcdChild(dir string) error {
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "etcd")
	cfg.LogLevel = "error"
	socket := url.URL{Scheme: "unix", Path: filepath.Join(dir, "peer.sock")}
	client := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{socket}, []url.URL{socket}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.QuotaBackendBytes = 4 << 30
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	<-e.Server.ReadyNotify()
	fmt.Println("http://" + e.Clients[0].Addr().String())
	select {}
}
