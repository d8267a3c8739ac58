package script

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// world is everything of one script.
type world struct {
	dir      string
	number   int
	ctx      context.Context
	cancel   context.CancelFunc
	clusters map[string]*cluster
	prober   *prober
}

var worlds atomic.Int32

func newWorld(dir string) *world {
	w := &world{dir: dir, number: int(worlds.Add(1)), clusters: map[string]*cluster{}, prober: &prober{down: map[netip.Addr]bool{}, probed: map[probe]int{}}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// close ends all agents, then all mesh API servers.
func (w *world) close() {
	w.cancel()
	for _, c := range w.clusters {
		for _, n := range c.nodes {
			n.haltAgent()
			n.client.Close()
		}
	}
	for _, c := range w.clusters {
		c.halt()
		c.store().Close()
	}
}

func (w *world) cluster(name string, id uint16, prefixes []netip.Prefix) *cluster {
	c := w.clusters[name]
	if c == nil {
		c = newCluster(w, name)
		w.clusters[name] = c
	}
	c.id, c.prefixes = clustermesh.ID(id), prefixes
	return c
}

func (w *world) with(name string, f func(*cluster) error) error {
	c := w.clusters[name]
	if c == nil {
		return fmt.Errorf("no cluster %s", name)
	}
	return f(c)
}

// split takes CLUSTER/REST apart.
func (w *world) split(path string) (*cluster, string, error) {
	name, rest, _ := strings.Cut(path, "/")
	c := w.clusters[name]
	if c == nil || rest == "" {
		return nil, "", fmt.Errorf("%s: want CLUSTER/NAME of a cluster that was started", path)
	}
	return c, rest, nil
}

func (w *world) node(path string) (*node, error) {
	c, name, err := w.split(path)
	if err != nil {
		return nil, err
	}
	if c.nodes[name] == nil {
		return nil, fmt.Errorf("no node %s", path)
	}
	return c.nodes[name], nil
}

// listen is an address that no other process and no other script listens on, and
// that stays over restarts: all of 127/8 is loopback.
func (w *world) listen(c *cluster) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:9443", 20+pid%200, pid/200%200+1, w.number%50*5+len(w.clusters)%5)
}

// scrub takes out of text what differs from run to run.
func (w *world) scrub(text string) string {
	for name, c := range w.clusters {
		text = strings.ReplaceAll(text, c.listen, "mesh."+name+":9443")
	}
	return text
}

// settle waits until all that was said has arrived wherever it can arrive: in
// the stores of clusters whose mesh API server runs and whose store answers, and
// at agents, from clusters that they are joined with and whose server runs.
//
// Each cluster has services settle/global and settle/local in a file of their
// own: one for each scope. They change last; when the agents have them, they have
// everything before. As a publisher may have several commits in flight, there are
// two rounds. The services have no frontend, so that no table shows them, and
// records leaves them out. Registrations are waited for where they are made.
func (w *world) settle() error {
	for range 2 {
		for _, name := range slices.Sorted(maps.Keys(w.clusters)) {
			c := w.clusters[name]
			if !c.canPublish() {
				continue
			}
			if err := errors.Join(c.mark(), c.moved()); err != nil {
				return fmt.Errorf("cluster %s: %w", name, err)
			}
		}
	}
	for _, c := range w.clusters {
		for _, n := range c.nodes {
			if err := n.settle(); err != nil {
				return fmt.Errorf("agent of %s/%s: %w", c.name, n.name, err)
			}
		}
	}
	return nil
}

// readPeers notes who has joined whom, for as long as stores are replaced.
func (w *world) readPeers() error {
	for _, c := range w.clusters {
		records, err := c.read("local/" + c.name + "/peer/")
		if err != nil {
			return err
		}
		clear(c.peers)
		for key := range records {
			c.peers[key.Name] = true
		}
	}
	return nil
}

// prober answers for nodes, but for those that are down.
type prober struct {
	mu     sync.Mutex
	down   map[netip.Addr]bool
	probed map[probe]int
}

type probe struct{ from, to netip.Addr }

func (p *prober) Probe(_ context.Context, from, to netip.Addr, _ time.Duration) (time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probed[probe{from, to}]++
	if p.down[to] {
		return 0, fmt.Errorf("%s does not answer", to)
	}
	return time.Millisecond, nil
}

func (p *prober) count(from, to []netip.Addr) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, v := range p.probed {
		if slices.Contains(from, k.from) && slices.Contains(to, k.to) {
			n += v
		}
	}
	return n
}

// probes makes nodes answer or not, and waits until every agent has probed them
// often enough to judge: 24 losses in a row, and the time of the last, or answers for 50 ms.
func (w *world) probes(paths []string, answer bool) error {
	if err := w.settle(); err != nil {
		return err
	}
	for _, path := range paths {
		n, err := w.node(path)
		if err != nil {
			return err
		}
		w.prober.mu.Lock()
		for _, a := range n.addresses() {
			w.prober.down[a] = !answer
		}
		w.prober.mu.Unlock()
	}
	enough := 50
	if answer {
		enough = 16
	}
	for _, path := range paths {
		n, _ := w.node(path)
		for _, c := range w.clusters {
			for _, from := range c.nodes {
				if from == n || from.agent == nil || !from.follows(n.of) {
					continue
				}
				before := w.prober.count(from.addresses(), n.addresses())
				if err := eventually(func() error {
					if w.prober.count(from.addresses(), n.addresses()) < before+enough*len(n.addresses()) {
						return fmt.Errorf("%s has not probed %s", from.name, path)
					}
					return nil
				}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func parsePrefixes(texts []string) (ps []netip.Prefix, err error) {
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

func parseAddrs(texts []string) (as []netip.Addr, err error) {
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil, err
		}
		as = append(as, a)
	}
	return as, nil
}

// replaceFile writes a file as a whole: nobody reads half of it.
func replaceFile(path, text string) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
