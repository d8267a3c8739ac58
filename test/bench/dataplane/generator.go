package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What is measured between client and server.
const (
	crr    = "crr"    // connect, a byte each way, close
	rr     = "rr"     // a byte each way on an open connection
	stream = "stream" // one connection, as fast as it goes
	reach  = "reach"  // connect to each target once
)

// job is what a generator process is told, by standard input.
type job struct {
	Kind    string
	Targets []netip.AddrPort // taken in turn
	Listen  netip.AddrPort   // of the server
	For     time.Duration
	// FirstPort is the first of the source ports, which go up by one with each
	// connection: the node must never see one again while it remembers the last.
	FirstPort int
	CPU       int // of both ends
}

// outcome is what it says, on standard output.
type outcome struct {
	PerSecond float64 // connections, round trips, or bits
	P50, P99  time.Duration
	Count     int
}

// generatorArg makes this program a generator: client and server on two threads
// in two namespaces, given as files 3 and 4.
const generatorArg = "dataplane-generator"

// generate runs a job in a process of its own between the pods of w, below
// cgroup if it is not empty.
func (w *world) generate(ctx context.Context, j job, cgroup string) (outcome, error) {
	var out outcome
	ctx, cancel := context.WithTimeout(ctx, j.For+10*time.Second)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		return out, err
	}
	in, err := json.Marshal(j)
	if err != nil {
		return out, err
	}
	cmd := exec.CommandContext(ctx, exe, generatorArg)
	cmd.Stdin, cmd.ExtraFiles = bytes.NewReader(in), []*os.File{w.client.ns, w.server.ns}
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1") // no signals into blocking calls
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if cgroup != "" {
		f, err := os.Open(cgroup)
		if err != nil {
			return out, err
		}
		defer f.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = errors.New("no answer in time: packets are lost")
		}
		return out, fmt.Errorf("%s: %w %s", j.Kind, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, json.Unmarshal(stdout.Bytes(), &out)
}

// generator is what the generator process does in place of main.
func generator() error {
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(3) // client, server, and this: their calls block a processor
	var j job
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return err
	}
	ready, failed := make(chan struct{}), make(chan error, 2)
	done, bits := make(chan outcome, 1), make(chan float64, 1)
	go func() {
		if err := onThread(4, j.CPU, func() error { return j.serve(ready, bits) }); err != nil {
			failed <- fmt.Errorf("server: %w", err)
		}
	}()
	select {
	case <-ready:
	case err := <-failed:
		return err
	}
	go func() {
		err := onThread(3, j.CPU, func() (err error) {
			o, err := j.client()
			if err == nil {
				done <- o
			}
			return err
		})
		if err != nil {
			failed <- fmt.Errorf("client: %w", err)
		}
	}()
	var out outcome
	select {
	case err := <-failed:
		return err
	case out = <-done:
	}
	if j.Kind == stream {
		select {
		case err := <-failed:
			return err
		case out.PerSecond = <-bits:
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// onThread runs fn on a thread of its own, in the namespace of file fd, on cpu,
// before whatever else wants that: what is measured is the path, not how busy the
// machine is with other things.
func onThread(fd, cpu int, fn func() error) error {
	runtime.LockOSThread()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := runFirst(cpu); err != nil {
		return err
	}
	return fn()
}

// runFirst pins the calling thread, and has it run before all others.
func runFirst(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("ask to run first: %w", err)
	}
	return nil
}
