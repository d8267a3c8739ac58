package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/linux"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// connects times connect() to a backend on loopback, directly and by a service
// address, from a process in a cgroup with the socket program; and directly from
// a process in no such cgroup.
func connects(ctx context.Context, b *bench) error {
	objs, cgroup, cleanup, err := kernel()
	if err != nil {
		return err
	}
	defer cleanup()
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // the caller goes first, by a reset
				io.Copy(io.Discard, c)
				c.Close()
			}()
		}
	}()
	backend := ln.Addr().(*net.TCPAddr).AddrPort()
	frontend := netip.MustParseAddrPort("172.20.255.1:80")
	t := linux.NewTables(objs.Maps, &linux.Device{})
	if err := putServices(t, 10_000, 4, 1); err != nil {
		return err
	}
	id := agent.ServiceID(clustermesh.ServiceName{Namespace: "bench", Name: "bench"}, "", clustermesh.TCP, false)
	err = t.Slots.Put(map[agent.SlotKey]agent.SlotRow{{Service: id, Cluster: 1}: {Addr: agent.MakeAddr(backend.Addr()), Port: backend.Port(), Cluster: 1, Node: 1}})
	if err != nil {
		return err
	}
	err = t.Services.Put(map[agent.ServiceKey]agent.ServiceRow{{Addr: agent.MakeAddr(frontend.Addr()), Port: 80, Proto: 6}: {ID: id, NumTiers: 1,
		Tiers: [agent.MaxTiers]agent.Tier{{Groups: 1, Share: clustermesh.ShareAll}}, Groups: [agent.MaxGroups]agent.Group{{Cluster: 1, Weight: 1, Count: 1}}}})
	if err != nil {
		return err
	}
	kinds := []struct{ name, target, cgroup string }{
		{"direct, no program", backend.String(), ""},
		{"direct, through the program", backend.String(), cgroup},
		{"by service address", frontend.String(), cgroup},
	}
	p50, p99 := make([][]float64, 3), make([][]float64, 3)
	for range b.runs {
		for i, k := range kinds {
			took, err := connectsOf(ctx, k.target, k.cgroup)
			if err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			p50[i] = append(p50[i], float64(stats.Quantile(took, 0.5).Nanoseconds())/1000)
			p99[i] = append(p99[i], float64(stats.Quantile(took, 0.99).Nanoseconds())/1000)
		}
	}
	rows := [][]string{{"connect() and close, 10,000 other services in the map", "p50", "ratio", "p99"}}
	for i, k := range kinds {
		rows = append(rows, []string{k.name, stats.Spread(p50[i], "µs"), stats.Short(stats.Median(p50[i]) / stats.Median(p50[0])), stats.Spread(p99[i], "µs")})
	}
	report(rows...)
	return nil
}

const connectCount = 5000

// connectsOf runs a child that connects again and again.
func connectsOf(ctx context.Context, target, cgroup string) ([]time.Duration, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, "bench-child", "connect", target)
	cmd.Stderr = os.Stderr
	if cgroup != "" {
		f, err := os.Open(cgroup)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	}
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	return took, json.Unmarshal(out, &took)
}

// child is what a child process does instead of main.
func child() {
	if len(os.Args) < 3 || os.Args[1] != "bench-child" {
		return
	}
	var err error
	switch os.Args[2] {
	case "connect":
		err = connectChild(os.Args[3])
	case "peer":
		err = peerChild(os.Args[3], os.Args[4], os.Args[5], os.Args[6])
	case "list":
		err = listChild(os.Args[3])
	case "etcd":
		err = etcdChild(os.Args[3])
	default:
		err = fmt.Errorf("unknown child %q", os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// connectChild uses bare system calls: what is timed is connect() alone.
func connectChild(target string) error {
	to, err := netip.ParseAddrPort(target)
	if err != nil {
		return err
	}
	sa := &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	took := make([]time.Duration, 0, connectCount)
	for i := range connectCount + 200 {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		// Reset at close: no TIME_WAIT to run out of ports.
		if err := syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}); err != nil {
			return err
		}
		begin := time.Now()
		err = syscall.Connect(fd, sa)
		d := time.Since(begin)
		syscall.Close(fd)
		if err != nil {
			return fmt.Errorf("connect %s: %w", target, err)
		}
		if i >= 200 { // the first warm up
			took = append(took, d)
		}
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	return json.NewEncoder(io.Writer(out)).Encode(took)
}
