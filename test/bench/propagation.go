package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

// propagation times a manifest's change until the row is in the kernel: file →
// mesh API server → its etcd (fsync on) → watch cache → mutual TLS → agent → BPF
// map, in three processes. The clock starts before the file is written. Beside
// it, a put into a bare etcd process until its watch event is back.
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
	type result struct{ p50, p99 []float64 }
	var results [2][2]result
	const changes = 500
	for range b.runs {
		for i, pace := range []time.Duration{0, 5 * time.Millisecond} {
			for j, change := range []func(context.Context) (time.Duration, error){ours.change, bare.change} {
				took, err := paced(ctx, changes, pace, change)
				if err != nil {
					return err
				}
				results[i][j].p50 = append(results[i][j].p50, ms(quantile(took, 0.5)))
				results[i][j].p99 = append(results[i][j].p99, ms(quantile(took, 0.99)))
			}
		}
	}
	rows := [][]string{{fmt.Sprintf("%d changes a run", changes), "source → BPF map p50", "p99", "bare put → event p50", "p99", "ratio p50 / p99"}}
	for i, name := range []string{"back to back", "one per 5 ms"} {
		o, e := results[i][0], results[i][1]
		rows = append(rows, []string{name, spread(o.p50, "ms"), spread(o.p99, "ms"), spread(e.p50, "ms"), spread(e.p99, "ms"),
			short(median(o.p50)/median(e.p50)) + " / " + short(median(o.p99)/median(e.p99))})
	}
	rows = append(rows, []string{"aim", "0.8; 1.5 ms", "4; 5 ms", "", "", "at most 2 / 3"})
	report(rows...)
	return nil
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
	cluster *lab.Cluster
	maps    *bpf.Maps
	key     bpf.SlotKey
	n       int
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
	if err := c.Start(ctx); err != nil {
		return fail(err)
	}
	err = c.Apply("service", lab.Manifest(lab.Object{"apiVersion": "v1", "kind": "Service",
		"metadata": lab.Object{"name": "probe", "namespace": "default"},
		"spec":     lab.Object{"clusterIP": "172.20.1.1", "clusterIPs": []string{"172.20.1.1"}, "ports": []lab.Object{{"name": "http", "port": 80, "protocol": "TCP"}}}}))
	if err != nil {
		return fail(err)
	}
	ch := &chain{cluster: c}
	if ch.maps, err = bpf.OpenMaps(c.Nodes[0].PinDir()); err != nil {
		return fail(err)
	}
	cleanup = func() { ch.maps.Close(); l.Close() }
	id := agent.ServiceID(clustermesh.ServiceName{Namespace: "default", Name: "probe"}, "http", clustermesh.TCP, false)
	ch.key = bpf.SlotKey{Service: id, Cluster: uint16(c.ID)}
	for range 50 { // warm
		if _, err := ch.change(ctx); err != nil {
			return fail(err)
		}
	}
	return ch, cleanup, nil
}

// change writes the slice with another address and waits for it in the map.
func (c *chain) change(ctx context.Context) (time.Duration, error) {
	c.n++
	addr := netip.AddrFrom4([4]byte{10, byte(c.cluster.ID), 1, byte(10 + c.n%200)})
	text := lab.Manifest(lab.Object{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata":  lab.Object{"name": "probe-1", "namespace": "default", "labels": lab.Object{"kubernetes.io/service-name": "probe"}},
		"ports":     []lab.Object{{"name": "http", "port": 8080, "protocol": "TCP"}},
		"endpoints": []lab.Object{{"addresses": []string{addr.String()}, "nodeName": "n1", "conditions": lab.Object{"ready": true}}}})
	want := addr.As16()
	begin := time.Now()
	if err := c.cluster.Apply("slice", text); err != nil {
		return 0, err
	}
	var slot bpf.Slot
	for {
		if err := c.maps.Slots.Lookup(&c.key, &slot); err == nil && slot.Addr.B == want {
			return time.Since(begin), nil
		}
		if time.Since(begin) > 10*time.Second {
			return 0, fmt.Errorf("change %d did not reach the map within 10 s", c.n)
		}
		time.Sleep(20 * time.Microsecond)
	}
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
