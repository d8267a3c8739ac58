package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

func now() time.Time { return time.Now() }

// usage is what one fresh reader took.
type usage struct{ seconds, wire, cpu, peak, settled []float64 }

func (u *usage) add(took time.Duration, wire int64, p procStat) {
	u.seconds = append(u.seconds, took.Seconds())
	u.wire = append(u.wire, mib(float64(wire)))
	u.cpu = append(u.cpu, p.cpu.Seconds())
	u.peak = append(u.peak, mib(float64(p.peak)))
	u.settled = append(u.settled, mib(float64(p.rss)))
}

func (u *usage) row(name string) []string {
	return []string{name, spread(u.seconds, "s"), spread(u.wire, "MiB"), spread(u.cpu, "s"), spread(u.peak, "MiB"), spread(u.settled, "MiB")}
}

// syncUp starts a fresh agent (no snapshot, empty maps) beside one peer and
// beside five, each with 81,000 keys behind the mesh port's own code and mutual
// TLS, until everything is in its kernel's maps. Beside it, the same keys read
// from a bare etcd by its own client, which decodes and keeps nothing.
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
	if err := home.Start(ctx); err != nil {
		return err
	}
	bare, err := bareReads(ctx, b)
	if err != nil {
		return err
	}
	header := []string{"", "time", "sent by peers", "CPU", "peak memory", "settled"}
	rows := [][]string{header, bare.row("bare etcd, one cluster's keys, own client, no TLS, nothing kept")}
	var peers []*peer
	defer func() {
		for _, p := range peers {
			p.proc.Kill()
		}
	}()
	for _, goal := range []struct {
		peers int
		aim   string
	}{{1, "aim: 0.3 s, 3 MiB, 60 MiB"}, {5, "aim: 1.2 s, 150 MiB"}} {
		for len(peers) < goal.peers {
			p, err := startPeer(ctx, l, home)
			if err != nil {
				return err
			}
			peers = append(peers, p)
		}
		var u usage
		for range b.runs {
			if err := freshAgent(ctx, home.Nodes[0], peers, &u); err != nil {
				return err
			}
		}
		rows = append(rows, u.row(fmt.Sprintf("agent, %d peer(s) of 81,000 keys (%s)", goal.peers, goal.aim)))
	}
	report(rows...)
	return nil
}

// freshAgent runs the agent once from nothing.
func freshAgent(ctx context.Context, n *lab.Node, peers []*peer, u *usage) error {
	n.Agent().Stop(5 * time.Second)
	if err := n.Wipe(); err != nil {
		return err
	}
	before, err := sentBy(peers)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := n.LaunchAgent(ctx); err != nil {
		return err
	}
	if err := awaitSynced(ctx, n, len(peers)); err != nil {
		return err
	}
	took := time.Since(begin)
	after, err := sentBy(peers)
	if err != nil {
		return err
	}
	st, err := statOf(n.Agent().Pid())
	if err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // until the garbage of the list is collected
	settled, err := statOf(n.Agent().Pid())
	if err != nil {
		return err
	}
	st.rss = settled.rss
	u.add(took, after-before, st)
	return nil
}

// awaitSynced waits until the agent has every peer and nothing left to write.
func awaitSynced(ctx context.Context, n *lab.Node, peers int) error {
	deadline := time.Now().Add(60 * time.Second)
	var last string
	for time.Now().Before(deadline) && ctx.Err() == nil {
		var st struct {
			Clusters []struct {
				Name   string `json:"name"`
				Synced bool   `json:"synced"`
				Local  bool   `json:"local"`
			} `json:"clusters"`
			Tables []struct {
				Pending int `json:"pending"`
			} `json:"tables"`
		}
		body, err := n.Get(ctx, "/v1/status")
		if err == nil {
			err = json.Unmarshal(body, &st)
		}
		synced, pending := 0, 0
		for _, c := range st.Clusters {
			if c.Synced {
				synced++
			}
		}
		for _, t := range st.Tables {
			pending += t.Pending
		}
		if err == nil && synced >= peers+1 && pending == 0 {
			return nil
		}
		last = fmt.Sprintf("%d clusters synced, %d rows to write, %v", synced, pending, err)
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("agent did not sync %d peers within 60 s: %s", peers, last)
}

// peer is a running peerChild.
type peer struct {
	proc *lab.Process
	in   io.WriteCloser
	out  *bufio.Reader
}

func startPeer(ctx context.Context, l *lab.Lab, home *lab.Cluster) (*peer, error) {
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
	p.proc, err = c.ControlExec("peer", inR, outW, exe, "bench-child", "peer", c.Name, fmt.Sprint(c.ID), c.MeshAddress())
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

// bareReads lists one cluster's keys from an etcd process, in fresh processes.
func bareReads(ctx context.Context, b *bench) (*usage, error) {
	endpoint, stop, err := etcdProcess(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	store, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	records, err := dataset("peer1", 2, large)
	if err != nil {
		return nil, err
	}
	kvs, err := encode("peer1", records)
	if err != nil {
		return nil, err
	}
	if err := putAll(ctx, store, kvs); err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var u usage
	for range b.runs {
		begin := time.Now()
		cmd := exec.CommandContext(ctx, exe, "bench-child", "list", endpoint)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, err
		}
		took := time.Since(begin)
		wire, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if err != nil {
			return nil, err
		}
		r := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		u.add(took, wire, procStat{cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), peak: r.Maxrss << 10, rss: r.Maxrss << 10})
	}
	return &u, nil
}

// listChild reads everything once and prints how many bytes of keys and values
// it got.
func listChild(endpoint string) error {
	ctx := context.Background()
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
	fmt.Println(bytes)
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
