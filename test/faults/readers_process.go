package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/agent/register"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/test/lab"
)

// readersSay is what the process of the readers says when all are synced.
type readersSay struct{ Records, Over, Resumed, Listed int }

type readerProcess struct {
	process *lab.Process
	in      *os.File
	out     *bufio.Scanner
}

// startReaders starts them on the first node. They show the certificates of all
// nodes in turn: what one node may read at a time is bounded.
func startReaders(c *lab.Cluster) (*readerProcess, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argv := []string{exe, readerArg, c.Name, strconv.Itoa(readerCount)}
	for _, n := range c.Nodes {
		argv = append(argv, n.Name+"="+n.StateDir())
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer inR.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inW.Close())
	}
	defer outW.Close()
	p, err := c.Nodes[0].ExecWith("readers", inR, outW, argv...)
	return &readerProcess{p, inW, bufio.NewScanner(outR)}, err
}

func (r *readerProcess) ask(line string) error {
	_, err := fmt.Fprintln(r.in, line)
	return err
}

// synced waits until all readers have at least so many records.
func (r *readerProcess) synced(ctx context.Context, records int) (readersSay, error) {
	return r.tell(ctx, "wait "+strconv.Itoa(records))
}

// tell asks for something and waits for the answer.
func (r *readerProcess) tell(ctx context.Context, line string) (say readersSay, err error) {
	if err := r.ask(line); err != nil {
		return say, err
	}
	answer := make(chan error, 1)
	go func() {
		if !r.out.Scan() {
			answer <- errors.New("the readers ended")
			return
		}
		answer <- json.Unmarshal(r.out.Bytes(), &say)
	}()
	select {
	case err = <-answer:
	case <-time.After(3 * time.Minute):
		r.process.Kill()
		err = fmt.Errorf("the readers did not answer %q within 3 minutes", line)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return say, err
}

// reader does not return in a process of readers.
func reader() {
	if len(os.Args) < 5 || os.Args[1] != readerArg {
		return
	}
	if err := readAll(os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, "readers:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// readAll follows what cluster exports, so many times over, and is told by lines:
//
//	half      half of the readers forget where they were
//	lost      answer when none has a connection
//	wait N    answer when all are synced and have N records; lists are counted from the last half on
func readAll(cluster, count string, nodes []string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var clients []*register.Client
	for _, at := range nodes {
		name, dir, _ := strings.Cut(at, "=")
		c, err := register.Open(register.Config{Node: name, StateDir: dir})
		if err != nil {
			return err
		}
		clients = append(clients, c)
	}
	var all []*oneReader
	for i := range n {
		r := &oneReader{cluster: cluster, client: clients[i%len(clients)]}
		r.begin()
		all = append(all, r)
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		word, arg, _ := strings.Cut(in.Text(), " ")
		switch word {
		case "half":
			for i, r := range all {
				r.mark()
				if i%2 == 0 {
					r.begin()
				}
			}
		case "lost":
			if err := json.NewEncoder(os.Stdout).Encode(awaitLost(all)); err != nil {
				return err
			}
		case "wait":
			want, err := strconv.Atoi(arg)
			if err != nil {
				return err
			}
			if err := json.NewEncoder(os.Stdout).Encode(awaitAll(all, want)); err != nil {
				return err
			}
		}
	}
	return nil
}

func awaitLost(all []*oneReader) (say readersSay) {
	for i := 0; i < len(all); {
		if st, _ := all[i].now(); st.Connected {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		i++
	}
	return say
}

func awaitAll(all []*oneReader, records int) (say readersSay) {
	for {
		say = readersSay{}
		synced := 0
		for _, r := range all {
			st, have := r.now()
			if st.Connected && st.Synced && have >= records {
				synced++
			}
			say.Records = have
			switch lists := r.lists(st); {
			case lists == 0:
				say.Resumed++
			case lists == 1:
				say.Listed++
			default:
				say.Over++
			}
		}
		if synced == len(all) {
			return say
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// oneReader has a connection of its own, and keeps nothing but a count.
type oneReader struct {
	cluster string
	client  *register.Client
	stop    func()

	mu      sync.Mutex
	status  kvstore.FollowStatus
	records int
	listing bool
	marked  int // lists that do not count
}

// begin follows from nothing.
func (r *oneReader) begin() {
	if r.stop != nil {
		r.stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.stop = func() { cancel(); <-done }
	r.mu.Lock()
	r.status, r.records, r.marked = kvstore.FollowStatus{}, 0, 0
	r.mu.Unlock()
	go func() {
		defer close(done)
		stores, closeAll, err := register.Connector{Client: r.client}.Stores(ctx, r.cluster, nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, "readers:", err)
			return
		}
		defer closeAll()
		_ = kvstore.Follow(ctx, kvstore.FollowConfig{ // ends with ctx
			Stores: stores, Prefix: clustermesh.ScopePrefix(clustermesh.ScopeExport, r.cluster),
			Marker: clustermesh.ClusterKey(clustermesh.ScopeExport, r.cluster), Sink: r,
			Status: func(s kvstore.FollowStatus) { r.mu.Lock(); defer r.mu.Unlock(); r.status = s },
		})
	}()
}

func (r *oneReader) mark() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marked = r.status.Lists
	r.status.Connected = false // until it says so again
}

func (r *oneReader) now() (kvstore.FollowStatus, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status, r.records
}

func (r *oneReader) lists(st kvstore.FollowStatus) int { return st.Lists - r.marked }

// Begin, Apply, Synced and Lost make it a sink. A list is counted as it comes; a
// service that changes later is no further record.
func (r *oneReader) Begin(kvstore.Position, []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records, r.listing = 0, true
	return nil
}

func (r *oneReader) Apply(_ kvstore.Position, events []kvstore.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		switch {
		case e.Delete:
			r.records--
		case e.KV.CreateRevision == e.KV.ModRevision || r.listing:
			r.records++
		}
	}
	return nil
}

func (r *oneReader) Synced(kvstore.Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listing = false
}

func (r *oneReader) Lost(error) {}
