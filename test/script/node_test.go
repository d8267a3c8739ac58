package script

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/agent/register"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// node is a node with its tables and its agent. The tables outlive the agent.
type node struct {
	of     *cluster
	name   string
	dir    string
	link   []netip.Prefix
	self   register.Self
	client *register.Client
	kernel *kernel
	told   told
	pods   []agent.LocalPod
	links  uint32

	agent *agent.Agent
	stop  func()
}

func (c *cluster) addNode(name, address string, links []string) error {
	if err := c.w.settle(); err != nil {
		return err
	}
	addrs, err := parseAddrs(strings.Split(address, ","))
	if err != nil {
		return err
	}
	link, err := parsePrefixes(links)
	if err != nil {
		return err
	}
	n := &node{of: c, name: name, link: link, dir: filepath.Join(c.w.dir, "state-"+c.name+"-"+name), kernel: newKernel()}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	n.client, err = register.Open(register.Config{StateDir: n.dir, Node: name, Token: n.token})
	if err != nil {
		return err
	}
	n.self = register.Self{UnderlayAddresses: addrs, WireGuardEndpoint: netip.AddrPortFrom(addrs[0], 51820).String()}
	copy(n.self.WireGuardKey[:], strings.Repeat(c.name+"/"+name+"/", 8))
	n.client.Update(n.self)
	if err := n.client.Register(c.w.ctx); err != nil {
		n.client.Close()
		return err
	}
	c.nodes[name] = n
	if err := eventually(func() error { return c.hasNode(n) }); err != nil {
		return err
	}
	return n.startAgent()
}

// token is what an operator hands over: a one-time node token.
func (n *node) token() (text string, err error) {
	err = n.of.admin(func(ctx context.Context, at pb.AdminClient) error {
		t, err := at.NodeToken(ctx, &pb.NodeTokenRequest{Node: n.name})
		text = t.GetToken()
		return err
	})
	return text, err
}

func (n *node) startAgent() error {
	a, err := agent.New(agent.Config{
		Cluster: n.of.name, ClusterID: n.of.id, Node: n.name, OnLink: n.link,
		SnapshotDir: filepath.Join(n.dir, "snapshot"), Connector: connector{n},
		Prober: n.of.w.prober, Health: agent.HealthConfig{Interval: 10 * time.Millisecond, Settle: 50 * time.Millisecond}, Resync: -1,
		Resets: &n.told, HealthPorts: &n.told,
	}, n.kernel.tables)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(n.of.w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = a.Run(ctx) // always nil
	}()
	n.agent = a
	a.SetPods(n.pods)
	n.stop = func() { cancel(); <-done }
	return nil
}

// connector is the real one, with the doors of the clusters in front.
type connector struct{ n *node }

func (c connector) Stores(ctx context.Context, name string, peer *clustermesh.Peer) ([]kvstore.Store, func(), error) {
	stores, closeAll, err := register.Connector{Client: c.n.client}.Stores(ctx, name, peer)
	for i := range stores {
		stores[i] = gate{stores[i], c.n.of.w.clusters[name].portDoor}
	}
	return stores, closeAll, err
}

// keep waits until the agent's snapshot on disk has what it knows now.
func (n *node) keep() error {
	if err := n.of.w.settle(); err != nil {
		return err
	}
	from := time.Now()
	if err := n.of.w.settle(); err != nil { // changes every view once more
		return err
	}
	return eventually(func() error {
		files, err := filepath.Glob(filepath.Join(n.dir, "snapshot", "[^.]*.snapshot"))
		if err != nil {
			return err
		}
		fresh := 0
		for _, f := range files {
			if info, err := os.Stat(f); err == nil && info.ModTime().After(from) {
				fresh++
			}
		}
		if want := 2 + len(n.of.peers); fresh != want {
			return fmt.Errorf("%d of %d snapshots are written", fresh, want)
		}
		return nil
	})
}

func (n *node) haltAgent() {
	if n.stop != nil {
		n.stop()
		n.stop, n.agent = nil, nil
	}
}

func (n *node) addresses() []netip.Addr {
	facts, _ := n.client.Facts()
	return facts.TunnelAddresses
}

// registerPod is what the agent does for a pod that the kubelet set up or took
// down. A pod's UID is its name.
func (n *node) registerPod(name, state string, addresses []string) error {
	if err := n.of.w.settle(); err != nil {
		return err
	}
	addrs, err := parseAddrs(addresses)
	if err != nil {
		return err
	}
	ns, pod, _ := strings.Cut(name, "/")
	e := register.Endpoint{Namespace: ns, Name: pod, Owner: "uid-" + pod, Ready: state == "ready", Remove: state == "gone", Addresses: addrs}
	if _, err := n.client.RegisterEndpoint(n.of.w.ctx, e); err != nil {
		return err
	}
	if !n.of.canPublish() {
		return nil
	}
	return eventually(func() error { return n.of.hasPod(e.Owner, e.Ready, e.Remove, addrs) })
}

// connectPod is what the kubelet has the agent do. Devices are numbered in the
// order in which pods came.
func (n *node) connectPod(name string, addresses []string) error {
	ns, pod, _ := strings.Cut(name, "/")
	uid := "uid-" + pod
	n.pods = slices.DeleteFunc(slices.Clone(n.pods), func(p agent.LocalPod) bool { return p.UID == uid })
	addrs, err := parseAddrs(addresses)
	if err != nil {
		return err
	}
	if len(addrs) > 0 {
		n.links++
		n.pods = append(n.pods, agent.LocalPod{
			UID: uid, Namespace: ns, Name: pod, Addresses: addrs, IfIndex: 100 + n.links,
			PodMAC: agent.MAC{2, 0, 0, 0, 1, byte(n.links)}, HostMAC: agent.MAC{2, 0, 0, 0, 2, byte(n.links)},
		})
	}
	if n.agent == nil {
		return nil
	}
	n.agent.SetPods(n.pods)
	return eventually(func() error {
		st, err := n.status()
		if err == nil && st.Pods != len(n.pods) {
			err = fmt.Errorf("it knows %d pods, not %d", st.Pods, len(n.pods))
		}
		return err
	})
}

// get asks the agent's API.
func (n *node) get(path string, into any) error {
	w := httptest.NewRecorder()
	n.agent.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	if w.Code != 200 && w.Code != 404 {
		return fmt.Errorf("%s: %d %s", path, w.Code, w.Body)
	}
	return json.Unmarshal(w.Body.Bytes(), into)
}

func (n *node) status() (s agent.Status, err error) { return s, n.get("/v1/status", &s) }

func (n *node) explain(service string) (e agent.ServiceExplanation, err error) {
	return e, n.get("/v1/services/"+service, &e)
}

// follows says whether the agent can hear c: its own cluster, or a peer of it.
func (n *node) follows(c *cluster) bool {
	if n.of == c {
		return true
	}
	return n.of.peers[c.name]
}

// settle waits until the agent has heard all that it can, and has written it.
func (n *node) settle() error {
	if n.agent == nil {
		return nil
	}
	err := eventually(func() error {
		if n.of.stop != nil {
			if err := n.heard("settle/local", n.of); err != nil {
				return err
			}
		}
		for _, c := range n.of.w.clusters {
			if c.stop != nil && n.of.stop != nil && (c == n.of || !c.stale) {
				if err := n.heard("settle/global", c); err != nil {
					return err
				}
			}
		}
		st, err := n.status()
		known := 0
		if err != nil {
			return err
		}
		for _, c := range st.Clusters {
			if c.Records == 0 {
				return fmt.Errorf("it knows nothing of %s yet", c.Name)
			}
			known++
		}
		if known <= len(n.of.peers) {
			return fmt.Errorf("it knows %d of %d peers", known-1, len(n.of.peers))
		}
		for _, t := range st.Tables {
			if t.Pending > 0 {
				return fmt.Errorf("table %s has %d rows to write", t.Name, t.Pending)
			}
		}
		return nil
	})
	if err != nil {
		st, _ := n.status()
		for _, c := range st.Clusters {
			err = fmt.Errorf("%w\ncluster %s: connected %v, synced %v, %s", err, c.Name, c.Connected, c.Synced, c.LastError)
		}
	}
	return err
}

// heard says whether the agent knows the last round of c's marks, or nothing of
// c if they are not joined.
func (n *node) heard(service string, c *cluster) error {
	e, err := n.explain(service)
	if err != nil {
		return err
	}
	for _, in := range e.Clusters {
		if in.Cluster != c.name {
			continue
		}
		if !n.follows(c) {
			return fmt.Errorf("cluster %s is still there", c.name)
		}
		if int(in.Weight) != c.marks {
			return fmt.Errorf("it knows round %d of %s, not %d", in.Weight, c.name, c.marks)
		}
		return nil
	}
	if n.follows(c) {
		return fmt.Errorf("it knows nothing of %s yet", c.name)
	}
	return nil
}

// kernel is a node's tables, with a note of every row that changes.
type kernel struct {
	tables agent.Tables
	text   map[string]func() string

	mu      sync.Mutex
	changes []string
}

var since = regexp.MustCompile(` since=\d+`)

func newKernel() *kernel {
	k := &kernel{text: map[string]func() string{}}
	k.tables = agent.Tables{
		Config:        fake(k, agent.TableConfig, agent.ConfigText),
		Peers:         fake(k, agent.TablePeers, agent.PeerText),
		Routes:        fake(k, agent.TableRoutes, agent.RouteText),
		Policy:        fake(k, agent.TablePolicy, agent.PolicyText),
		IPPrefixes:    fake(k, agent.TableIPPrefixes, agent.IPPrefixText),
		IPs:           fake(k, agent.TableIPs, agent.IPText),
		ClassPrefixes: fake(k, agent.TableClassPrefixes, agent.ClassPrefixText),
		Classes:       fake(k, agent.TableClasses, agent.ClassText),
		Subjects:      fake(k, agent.TableSubjects, agent.SubjectText),
		Endpoints:     fake(k, agent.TableEndpoints, agent.EndpointText),
		SourceRanges:  fake(k, agent.TableSourceRanges, agent.RangeText),
		Maglev:        fake(k, agent.TableMaglev, agent.MaglevText),
		Slots:         fake(k, agent.TableSlots, agent.SlotText),
		Services:      fake(k, agent.TableServices, agent.ServiceText),
		Epoch:         &agent.FakeEpoch{},
		NodeHealth:    fake(k, agent.TableNodeHealth, agent.NodeHealthText),
		ClusterHealth: fake(k, agent.TableClusterHealth, agent.ClusterHealthText),
	}
	return k
}

func fake[K, V comparable](k *kernel, name string, text agent.Text[K, V]) *agent.Fake[K, V] {
	f := agent.NewFake[K, V](name, 0)
	k.text[name] = func() string { return since.ReplaceAllString(text.Print(f.Rows()), "") }
	held := map[K]V{}
	f.OnChange(func(key K, row *V) {
		k.mu.Lock()
		defer k.mu.Unlock()
		old, had := held[key]
		switch {
		case row == nil && had:
			k.changes = append(k.changes, "- "+name+" "+since.ReplaceAllString(text.Format(key, old), ""))
			delete(held, key)
		case row != nil && (!had || old != *row):
			k.changes = append(k.changes, "+ "+name+" "+since.ReplaceAllString(text.Format(key, *row), ""))
			held[key] = *row
		}
	})
	return f
}

// takeChanges are the changes since the last call, each once, sorted.
func (k *kernel) takeChanges() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	slices.Sort(k.changes)
	lines := slices.Compact(k.changes)
	k.changes = nil
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}
