// Package lab runs whole clusters of real processes on one machine: a mesh API
// server, agents, tunnel processes and pods, each in network namespaces and
// cgroups of their own, joined by an underlay that can be told to misbehave.
// The demo and the lab tests use it alike.
//
//	                  underlay netns (routes between clusters)
//	      br-aws 10.101.0.1/24                br-gcp 10.102.0.1/24
//	     ┌───────┼────────┐                  ┌───────┼────────┐
//	    cp      n1        n2                cp      n1        n2       one netns and cgroup each
//	apiserver  agent     agent          apiserver  agent     agent
//	etcd       tunnel    tunnel         etcd       tunnel    tunnel
//	           pods…     pods…                     pods…     pods…     one netns each, veth by CNI
//
// Everything a lab makes carries its ID, so that a process with no memory can
// sweep it: see Sweep.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// Options of a lab.
type Options struct {
	BinDir string    // folder of tombolo-apiserver, tombolo-agent, tombolo-cni and tombolo
	Log    io.Writer // where processes' output goes besides their log files; nil = nowhere
	Keep   bool      // leave everything up when the owner ends (demo --keep)
}

// Lab is one underlay with its clusters. Methods are for one goroutine.
type Lab struct {
	ID  string // 4 hex digits, in the name of everything this lab makes
	Dir string // sockets, state, logs; removed by Close

	opts     Options
	cgroup   string // of this lab
	under    *host
	janitor  *janitor
	faults   *faults
	clusters []*Cluster

	mu   sync.Mutex
	tail []io.Closer // open captures, relays; closed before the sweep
}

// New makes an empty lab: its folder, cgroup, underlay, and a janitor process
// that sweeps it when this process dies without Close.
func New(ctx context.Context, opts Options) (*Lab, error) {
	if err := Prerequisites(); err != nil {
		return nil, err
	}
	var raw [2]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return nil, err
	}
	id := hex.EncodeToString(raw[:])
	l := &Lab{ID: id, Dir: filepath.Join(os.TempDir(), "tombolo-"+id), opts: opts}
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make lab folder: %w", err)
	}
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	l.cgroup = filepath.Join(root, "tombolo-"+id)
	if l.janitor, err = startJanitor(l.ID, l.Dir); err != nil {
		os.Remove(l.Dir)
		return nil, err
	}
	if err := l.makeUnderlay(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close kills the lab's processes and removes everything it made. With
// Options.Keep it leaves all as it is and only lets go of the janitor.
func (l *Lab) Close() error {
	l.mu.Lock()
	tail := l.tail
	l.tail = nil
	l.mu.Unlock()
	for _, c := range tail {
		c.Close()
	}
	l.faults.close()
	if l.opts.Keep {
		return l.janitor.dismiss()
	}
	err := Sweep(l.ID, l.Dir)
	return errors.Join(err, l.janitor.dismiss())
}

// Clusters in the order they were added.
func (l *Lab) Clusters() []*Cluster { return l.clusters }

// Cluster by name, or nil.
func (l *Lab) Cluster(name string) *Cluster {
	for _, c := range l.clusters {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func (l *Lab) closeLater(c io.Closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, c)
}
