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

const (
	readerCount    = 500
	readerServices = 5000 // two records each: the service and its slice
	readerArg      = "lab-readers"
	readerMost     = 512 << 20 // of the server's memory: 1 MiB a reader
)

// readers: the mesh API server dies, and all who read it come back at once. Half of
// them know where they were, half begin anew.
func readers(ctx context.Context, s *suite) (err error) {
	l, err := lab.New(ctx, lab.Options{BinDir: s.binDir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	c, err := l.AddCluster(home, 4)
	if err != nil {
		return err
	}
	m := &mesh{Lab: l, home: c, servers: map[*lab.Cluster][]*lab.Pod{}}
	if err := c.Start(ctx); err != nil {
		return err
	}
	if err := m.fill(ctx, c, meshOptions{services: readerServices, affinity: "none"}); err != nil {
		return err
	}
	r, err := startReaders(c)
	if err != nil {
		return err
	}
	defer r.process.Kill()
	first, err := r.synced(ctx, 2*readerServices)
	if err != nil {
		return err
	}
	if err := s.readerMemory(c, fmt.Sprintf("%d readers take in %d records as they are published", readerCount, first.Records)); err != nil {
		return err
	}
	if err := s.cutReaders(ctx, l, c, r); err != nil {
		return err
	}
	return s.restartReaders(ctx, c, r)
}

// cutReaders cuts all connections and lets them come back: half of the readers know
// where they were, and the server does, too.
func (s *suite) cutReaders(ctx context.Context, l *lab.Lab, c *lab.Cluster, r *readerProcess) error {
	heal, err := l.Inject(lab.Fault{Proto: 6, Port: lab.MeshPort, Loss: 1})
	if err != nil {
		return err
	}
	if _, err := r.tell(ctx, "lost"); err != nil {
		return err
	}
	if err := r.ask("half"); err != nil {
		return err
	}
	begin := time.Now()
	if err := heal(); err != nil {
		return err
	}
	again, err := r.synced(ctx, 2*readerServices)
	if err != nil {
		return err
	}
	s.within(fmt.Sprintf("after a cut, all %d are synced within 60 s", readerCount), time.Minute, []time.Duration{time.Since(begin)})
	s.lists(again)
	missed := max(0, readerCount/2-again.Resumed)
	s.never("who knows where he was needs no list", missed, fmt.Sprintf("%d of %d read one", missed, readerCount/2))
	return s.readerMemory(c, "a cut")
}

// restartReaders kills the server: its watch cache begins anew, and everybody lists.
func (s *suite) restartReaders(ctx context.Context, c *lab.Cluster, r *readerProcess) error {
	c.KillControlPlane()
	if err := r.ask("half"); err != nil {
		return err
	}
	begin := time.Now()
	if err := c.StartControlPlane(ctx); err != nil {
		return err
	}
	up := time.Since(begin)
	again, err := r.synced(ctx, 2*readerServices)
	if err != nil {
		return err
	}
	s.within(fmt.Sprintf("after the server's death, all %d are synced within 60 s of its start", readerCount), time.Minute, []time.Duration{time.Since(begin)})
	s.figure("of that, until the server answered", seconds(up))
	s.lists(again)
	return s.readerMemory(c, "a restart")
}

func (s *suite) lists(say readersSay) {
	s.never("each reads one list at most", say.Over, fmt.Sprintf("%d read more; %d resumed without any, %d read one", say.Over, say.Resumed, say.Listed))
}

// readerMemory checks what the server took for them.
func (s *suite) readerMemory(c *lab.Cluster, when string) error {
	m, err := memoryOf(c.ControlPlane().Pid())
	if err != nil {
		return err
	}
	over := 0
	if m.peak > readerMost {
		over = 1
	}
	s.never(fmt.Sprintf("%s: the server takes no more than %d MiB", when, readerMost>>20), over, fmt.Sprintf("peak %d MiB, then %d", m.peak>>20, m.now>>20))
	return nil
}

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

type memory struct{ now, peak int64 } // bytes

func memoryOf(pid int) (m memory, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			m.peak = kib << 10
		}
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			m.now = kib << 10
		}
	}
	return m, err
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
