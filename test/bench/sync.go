package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
	"github.com/tombolo-mesh/tombolo/test/bench/stats"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

func now() time.Time { return time.Now() }

// usage is what one fresh reader took.
type usage struct {
	seconds, work, wire, cpu, peak, settled []float64
	others                                  []float64 // CPU of tunnel process and peers
}

func (u *usage) add(took, work time.Duration, wire int64, p procStat) {
	u.seconds = append(u.seconds, took.Seconds())
	u.work = append(u.work, work.Seconds())
	u.wire = append(u.wire, mib(float64(wire)))
	u.cpu = append(u.cpu, p.cpu.Seconds())
	u.peak = append(u.peak, mib(float64(p.peak)))
	u.settled = append(u.settled, mib(float64(p.rss)))
}

func (u *usage) row(name string) []string {
	row := []string{name, stats.Spread(u.work, "s"), stats.Spread(u.seconds, "s"), stats.Spread(u.wire, "MiB"), stats.Spread(u.cpu, "s"), "", stats.Spread(u.peak, "MiB"), stats.Spread(u.settled, "MiB")}
	if len(u.others) > 0 {
		row[5] = stats.Spread(u.others, "s")
	}
	return row
}

// syncUp starts a fresh agent (no snapshot, empty maps, no peers in the tunnel
// device) beside one peer and beside five, each with 81,000 keys behind the mesh
// port's own code and mutual TLS, until everything is in its kernel: the BPF
// maps, and before them the routes to and WireGuard peers of all nodes. The own
// cluster has the same 5,000 services, so that the peers' backends get slots.
// Beside it, the same keys read from a bare etcd by the same client, which
// decodes and keeps nothing; runs alternate.
func syncUp(ctx context.Context, b *bench) error {
	l, err := lab.New(ctx, lab.Options{BinDir: b.binDir})
	if err != nil {
		return err
	}
	defer l.Close()
	home, err := l.AddCluster("home", 1)
	if err != nil {
		return err
	}
	if err := home.Apply("services", homeServices(large.services)); err != nil {
		return err
	}
	if err := home.Start(ctx); err != nil {
		return err
	}
	read, stop, err := bareReads(ctx)
	if err != nil {
		return err
	}
	defer stop()
	rows := [][]string{{"", "after programs are loaded", "since the process began", "sent by peers", "CPU", "CPU of tunnel process and peers", "peak memory", "settled"}}
	var peers []*peer
	defer func() {
		for _, p := range peers {
			p.end()
		}
	}()
	for _, goal := range []struct {
		peers          int
		aim, incumbent []string
	}{
		{1, []string{"0.3 s", "", "3 MiB", "", "", "60 MiB"}, []string{"3.2 s", "", "21 MiB", "", "", "190 MiB"}},
		{5, []string{"1.2 s", "", "", "", "", "150 MiB"}, []string{"16 s", "", "", "", "", "600 MiB"}},
	} {
		for len(peers) < goal.peers {
			p, err := startPeer(ctx, l, home, "large")
			if err != nil {
				return err
			}
			peers = append(peers, p)
		}
		var ours, bare usage
		for range b.runs {
			if goal.peers == 1 {
				if err := read(&bare); err != nil {
					return err
				}
			}
			if err := freshAgent(ctx, home.Nodes[0], peers, &ours); err != nil {
				return err
			}
		}
		if goal.peers == 1 {
			rows = append(rows, bare.row("bare etcd, same client, no TLS, nothing kept or written (keys and values)"))
		}
		name := fmt.Sprintf("agent, %d × 81,000 keys", goal.peers)
		rows = append(rows, ours.row(name), append([]string{name + ": aim"}, goal.aim...), append([]string{incumbent("no maps written")}, goal.incumbent...))
	}
	report(rows...)
	return nil
}

// homeServices are the manifests of the services that the peers have as well.
func homeServices(n int) string {
	var all []lab.Object
	spaces := map[string]bool{}
	for i := range n {
		name := serviceName(i)
		if !spaces[name.Namespace] {
			spaces[name.Namespace] = true
			all = append(all, lab.Namespace(name.Namespace))
		}
		address := fmt.Sprintf("172.20.%d.%d", 1+i>>8, i&255)
		all = append(all, lab.Object{"apiVersion": "v1", "kind": "Service",
			"metadata": lab.Object{"name": name.Name, "namespace": name.Namespace, "annotations": lab.Object{"tombolo.io/global": "true"}},
			"spec":     lab.Object{"clusterIP": address, "clusterIPs": []string{address}, "ports": []lab.Object{{"name": "http", "port": 80, "protocol": "TCP"}}}})
	}
	return lab.Manifest(all...)
}

// freshAgent runs the agent once from nothing.
func freshAgent(ctx context.Context, n *lab.Node, peers []*peer, u *usage) error {
	n.Agent().Stop(5 * time.Second)
	n.Tunnel().Kill()
	if err := n.Wipe(); err != nil {
		return err
	}
	if err := n.StartTunnel(); err != nil {
		return err
	}
	time.Sleep(time.Second) // the device is up, and everybody idle again
	before, err := sentBy(peers)
	if err != nil {
		return err
	}
	busy, err := cpuOf(n, peers)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := n.LaunchAgent(ctx); err != nil {
		return err
	}
	started, done, err := awaitSettled(ctx, n, len(peers))
	if err != nil {
		return err
	}
	after, err := sentBy(peers)
	if err != nil {
		return err
	}
	st, err := statOf(n.Agent().Pid())
	if err != nil {
		return err
	}
	later, err := cpuOf(n, peers)
	if err != nil {
		return err
	}
	u.others = append(u.others, (later - busy).Seconds())
	time.Sleep(5 * time.Second) // until the snapshot is written and the garbage of it all is collected
	end, err := statOf(n.Agent().Pid())
	if err != nil {
		return err
	}
	st.rss, st.peak = end.rss, end.peak
	u.add(done.Sub(begin), done.Sub(started), after-before, st)
	return nil
}

// cpuOf is what those used that work for the agent: the process that holds the
// WireGuard device, and the mesh ports.
func cpuOf(n *lab.Node, peers []*peer) (total time.Duration, err error) {
	tunnel, err := statOf(n.Tunnel().Pid())
	if err != nil {
		return 0, err
	}
	total = tunnel.cpu
	for _, p := range peers {
		st, err := statOf(p.proc.Pid())
		if err != nil {
			return 0, err
		}
		total += st.cpu
	}
	return total, nil
}

// awaitSettled waits until the agent has every peer and nothing left to write,
// and says when it began to work and when it got there, by its own word: asking
// it all the time would be work for it.
func awaitSettled(ctx context.Context, n *lab.Node, peers int) (started, settled time.Time, err error) {
	deadline := time.Now().Add(60 * time.Second)
	var last string
	for time.Now().Before(deadline) && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		var st agent.Status
		if err := n.GetJSON(ctx, "/v1/status", &st); err != nil {
			last = err.Error()
			continue
		}
		if st.Settled != nil && len(st.Clusters) == peers+1 {
			return st.Started, *st.Settled, checkRows(st, peers)
		}
		pending := 0
		for _, t := range st.Tables {
			pending += t.Pending
		}
		last = fmt.Sprintf("%d clusters, %d rows to write", len(st.Clusters), pending)
	}
	return started, settled, fmt.Errorf("agent did not sync %d peers within 60 s: %s", peers, last)
}

// checkRows makes sure that what was timed was all there is to do.
func checkRows(st agent.Status, peers int) error {
	want := map[string]int{
		agent.TableIPs: peers * large.addresses, agent.TablePeers: peers * large.nodes, agent.TableRoutes: 2 * peers * large.nodes,
		agent.TableSlots: peers * large.services * large.endpoints, agent.TableServices: large.services,
	}
	for _, t := range st.Tables {
		if n := want[t.Name]; t.Wanted < n || t.Pending > 0 {
			return fmt.Errorf("table %s has %d rows and %d pending; %d were expected", t.Name, t.Wanted, t.Pending, n)
		}
	}
	return nil
}

// peer is a running peerChild.
type peer struct {
	proc *lab.Process
	in   io.WriteCloser
	out  *bufio.Reader
}

func startPeer(ctx context.Context, l *lab.Lab, home *lab.Cluster, size string) (*peer, error) {
	c, err := l.AddCluster(fmt.Sprintf("peer%d", len(l.Clusters())), 0)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &peer{in: inW, out: bufio.NewReader(outR)}
	p.proc, err = c.ControlExec("peer", inR, outW, exe, "bench-child", "peer", c.Name, fmt.Sprint(c.ID), c.MeshAddress(), size)
	inR.Close()
	outW.Close()
	if err != nil {
		return nil, err
	}
	if _, err := p.out.ReadString('\n'); err != nil {
		return nil, fmt.Errorf("peer %s: %w, see %s", c.Name, err, p.proc.Log)
	}
	admin, err := home.Admin()
	if err != nil {
		return nil, err
	}
	inv, err := admin.Invite(ctx, &pb.InviteRequest{TtlSeconds: 600})
	if err != nil {
		return nil, err
	}
	_, err = p.ask("join " + inv.Token)
	return p, err
}

// end lets the process tidy up: it ends with its input.
func (p *peer) end() {
	p.in.Close()
	select {
	case <-p.proc.Done():
	case <-time.After(5 * time.Second):
		p.proc.Kill()
	}
}

func (p *peer) ask(line string) (string, error) {
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		return "", err
	}
	answer, err := p.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s: %w, see %s", strings.Fields(line)[0], err, p.proc.Log)
	}
	return strings.TrimSpace(answer), nil
}

func sentBy(peers []*peer) (total int64, err error) {
	for _, p := range peers {
		text, err := p.ask("bytes")
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// bareReads fills an etcd process with one cluster's keys; read lists them in a
// fresh process.
func bareReads(ctx context.Context) (read func(*usage) error, stop func(), err error) {
	endpoint, stop, err := etcdProcess(ctx)
	if err != nil {
		return nil, nil, err
	}
	exe, err := os.Executable()
	if err == nil {
		err = fill(ctx, endpoint)
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	read = func(u *usage) error {
		begin := time.Now()
		cmd := exec.CommandContext(ctx, exe, "bench-child", "list", endpoint)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return err
		}
		took := time.Since(begin)
		var wire, work int64
		if _, err := fmt.Sscan(string(out), &wire, &work); err != nil {
			return err
		}
		r := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		u.add(took, time.Duration(work), wire, procStat{cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), peak: r.Maxrss << 10, rss: r.Maxrss << 10})
		return nil
	}
	return read, stop, nil
}

func fill(ctx context.Context, endpoint string) error {
	store, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	defer store.Close()
	records, err := dataset("peer1", 2, large)
	if err != nil {
		return err
	}
	kvs, err := encode("peer1", records)
	if err != nil {
		return err
	}
	return putAll(ctx, store, kvs)
}

// listChild reads everything once and prints how many bytes of keys and values
// it got, and the nanoseconds it took from connecting.
func listChild(endpoint string) error {
	ctx := context.Background()
	begin := time.Now()
	store, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	defer store.Close()
	var bytes int
	_, err = store.List(ctx, clustermesh.Root, kvstore.Position{}, func(kvs []kvstore.KV) error {
		for _, kv := range kvs {
			bytes += len(kv.Key) + len(kv.Value)
		}
		return nil
	})
	fmt.Println(bytes, time.Since(begin).Nanoseconds())
	return err
}

// procStat is what the kernel says of a process.
type procStat struct {
	cpu       time.Duration
	peak, rss int64 // bytes
}

func statOf(pid int) (p procStat, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return p, err
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmHWM:":
			p.peak = n << 10
		case "VmRSS:":
			p.rss = n << 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, err
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	p.cpu = time.Duration(user+system) * (time.Second / 100) // USER_HZ is 100 everywhere
	return p, nil
}
