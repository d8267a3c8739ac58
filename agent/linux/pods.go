package linux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
)

// PodsConfig makes Pods.
type PodsConfig struct {
	StateDir string
	// Chained: another CNI plugin connects the pods; ours takes them over.
	Chained bool
	// Changed is called with all connected pods after every change (and once by
	// Start), one call at a time.
	Changed func([]agent.LocalPod)
	// Guard puts the program on a pod's link (the host side's index) that judges
	// what the pod sends and gets. It is called before the link is set up, and by
	// Start for the links that are there; a pod whose link cannot be guarded is not
	// connected. nil = none.
	Guard func(ifindex int) error
	Log   *slog.Logger     // nil = discard
	Now   func() time.Time // nil = time.Now
}

// NodeNetwork is what a node must know of itself before it can connect pods. It
// comes from registration, or from the disk.
type NodeNetwork struct {
	PodPrefixes     []netip.Prefix
	TunnelAddresses []netip.Addr
	PodMTU          int
}

// Pods connects pods: it implements agent.Pods. A pod is known by its UID; its
// addresses survive restarts of the agent and of the node. All methods are safe
// for concurrent use.
type Pods struct {
	cfg  PodsConfig
	log  *slog.Logger
	nl   *netlink.Handle
	node *os.File // the node's network namespace

	mu       sync.Mutex
	network  NodeNetwork
	pods     map[string]*pod // by UID
	pools    []*pool
	freed    []freedAddress // of prefixes that are not the node's at present
	departed []departed
	index    map[string]uint32    // UID → host ifindex, while connected
	unlisted map[string]time.Time // UID → since when the cluster has it no more
	unready  map[string]bool      // UID → its readiness probe fails
	probed   map[string]bool      // UID → it has a readiness probe
	wake     chan struct{}        // tells Report that something changed
	again    atomic.Uint32        // counts calls of ReportAgain
}

// OpenPods reads the state file and looks which pods are connected still. It
// must be called in the node's network namespace.
func OpenPods(cfg PodsConfig) (*Pods, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Pods{cfg: cfg, log: cfg.Log, pods: map[string]*pod{}, index: map[string]uint32{}, unlisted: map[string]time.Time{}, unready: map[string]bool{}, probed: map[string]bool{}, wake: make(chan struct{}, 1)}
	st, look, err := readPodState(p.file(), p.log)
	if err != nil {
		return nil, err
	}
	for i := range st.Pods {
		p.pods[st.Pods[i].UID] = &st.Pods[i]
	}
	p.freed, p.departed = st.Freed, st.Departed
	if p.node, err = currentNetns(); err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	if p.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		p.node.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := p.reconcile(look); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close frees the handles; pods stay connected.
func (p *Pods) Close() {
	p.nl.Close()
	p.node.Close()
}

func (p *Pods) file() string { return filepath.Join(p.cfg.StateDir, "pods.json") }

// reconcile marks pods whose link is gone and, if the state file was lost
// (look), learns pods from the aliases of their devices.
func (p *Pods) reconcile(look bool) error {
	links, err := p.nl.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	now, live := p.cfg.Now(), map[string]uint32{}
	for _, link := range links {
		if r, chained := chainedFromLink(link); chained {
			p.reconcileChained(r, uint32(link.Attrs().Index), live, look)
			continue
		}
		uid, addrs, ok := podFromAlias(link.Attrs().Alias)
		if !ok || link.Attrs().Name != hostIfName(uid) {
			continue
		}
		live[uid] = uint32(link.Attrs().Index)
		if look && p.pods[uid] == nil && len(addrs) > 0 {
			p.log.Warn("pod learned from its device", "uid", uid, "device", link.Attrs().Name, "addresses", addrs)
			p.pods[uid] = &pod{UID: uid, IfName: "eth0", Addresses: addrs, MTU: link.Attrs().MTU, Added: now}
		}
	}
	for uid, r := range p.pods {
		if index, ok := live[uid]; ok {
			p.index[uid], r.Gone = index, time.Time{}
		} else if r.chained() {
			p.log.Info("pod of another CNI has no link any more (the node was restarted?)", "uid", uid, "addresses", r.Addresses)
			p.forget(r, now)
		} else if r.Gone.IsZero() {
			r.Gone = now
			p.log.Info("pod has no link (the node was restarted?): its addresses are kept for it", "uid", uid, "addresses", r.Addresses, "for", goneFor)
		}
	}
	return nil
}

// reconcileChained finds a chained pod's device again: the one of its record, or one
// that tells of a pod whose record was lost (look).
func (p *Pods) reconcileChained(r pod, index uint32, live map[string]uint32, look bool) {
	if look && p.pods[r.UID] == nil {
		p.log.Warn("pod learned from its device", "uid", r.UID, "device", r.HostIf, "addresses", r.Addresses)
		r.Added = p.cfg.Now()
		p.pods[r.UID] = &r
	}
	if rec := p.pods[r.UID]; rec != nil && rec.HostIf == r.HostIf && slices.Equal(rec.Addresses, r.Addresses) {
		live[r.UID] = index
	}
}

// SetNetwork says what the node may hand out. Pods keep addresses of former
// prefixes until they end.
func (p *Pods) SetNetwork(n NodeNetwork) error {
	if err := inNetns(p.node, nodeSysctls); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.PodMTU == 0 {
		n.PodMTU = PodMTU(1500)
	}
	old := p.network
	p.network = n
	if p.pools != nil && slices.Equal(old.PodPrefixes, n.PodPrefixes) && slices.Equal(old.TunnelAddresses, n.TunnelAddresses) {
		return nil
	}
	now := p.cfg.Now()
	rest := p.allFreed()
	p.pools, p.freed = nil, nil
	for _, prefix := range n.PodPrefixes {
		if p.cfg.Chained || prefix.IsSingleIP() {
			continue // who has no prefix gives no addresses: see unsettled
		}
		p.pools = append(p.pools, newPool(prefix, n.TunnelAddresses))
	}
	for _, r := range p.pods {
		for _, a := range r.Addresses {
			if i := p.poolOf(a); i >= 0 && !r.chained() && !p.pools[i].claim(a, r.UID) {
				p.log.Error("pod has an address that it may not have", "uid", r.UID, "address", a)
			}
		}
	}
	for _, f := range rest {
		if i := p.poolOf(f.Address); i >= 0 {
			p.pools[i].rest(f, now)
		} else {
			p.freed = append(p.freed, f)
		}
	}
	return nil
}

func (p *Pods) poolOf(a netip.Addr) int {
	return slices.IndexFunc(p.pools, func(pl *pool) bool { return pl.prefix.Contains(a) })
}

func (p *Pods) allFreed() []freedAddress {
	all := slices.Clone(p.freed)
	for _, pl := range p.pools {
		all = append(all, pl.freed...)
	}
	return all
}

// Add connects a pod. Repeated, it finds what it made and answers the same; for
// a new sandbox of a known pod it connects the new one with the old addresses.
func (p *Pods) Add(ctx context.Context, r agent.PodRequest) (agent.PodResult, error) {
	if r.UID == "" {
		r.UID = r.ContainerID // a runtime without Kubernetes: the container is the pod
	}
	switch {
	case r.UID == "" || strings.ContainsAny(r.UID, " \t\n/") || len(r.UID) > 128:
		return agent.PodResult{}, fmt.Errorf("pod UID %q: must be 1 to 128 bytes without spaces or slashes", r.UID)
	case r.Netns == "":
		return agent.PodResult{}, errors.New("no network namespace named: CNI_NETNS is empty")
	case r.IfName == "" || len(r.IfName) >= unix.IFNAMSIZ || r.IfName == "lo":
		return agent.PodResult{}, fmt.Errorf("interface name %q: must have 1 to %d bytes and not be lo", r.IfName, unix.IFNAMSIZ-1)
	}
	ns, err := os.Open(r.Netns)
	if err != nil {
		return agent.PodResult{}, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()

	p.mu.Lock()
	defer p.mu.Unlock()
	if err := errors.Join(p.checkMode(r), p.unsettled()); err != nil {
		return agent.PodResult{}, err
	}
	if had := p.pods[r.UID]; had != nil && had.ContainerID == r.ContainerID && had.IfName != r.IfName && had.Gone.IsZero() {
		return agent.PodResult{}, fmt.Errorf("pod %s/%s is connected by %s already, and has one connection to the mesh: leave %s out, or delete the other first", had.Namespace, had.Name, had.IfName, r.IfName)
	}
	if r.Chained {
		return p.addChained(r, ns)
	}
	fresh := p.pods[r.UID] == nil || p.pods[r.UID].ContainerID != r.ContainerID
	rec, err := p.allocate(r)
	if err != nil {
		return agent.PodResult{}, err
	}
	if fresh && p.probed[r.UID] {
		p.unready[r.UID] = true // until its probe passes
	}
	link := p.link(rec)
	index, connected := p.index[rec.UID]
	if !connected || link.check(p.nl, ns) != nil {
		made, err := link.connect(p.nl, p.node, ns, p.cfg.Guard)
		if err != nil {
			// The record stays: the next try gets the same addresses.
			delete(p.index, rec.UID)
			rec.Gone = p.cfg.Now()
			return agent.PodResult{}, errors.Join(err, p.save())
		}
		index = uint32(made)
	}
	p.index[rec.UID], rec.Gone = index, time.Time{}
	if err := p.save(); err != nil {
		return agent.PodResult{}, err
	}
	p.log.Info("pod connected", "namespace", rec.Namespace, "name", rec.Name, "uid", rec.UID, "addresses", rec.Addresses, "device", link.HostIf)
	p.announce()
	return result(link), nil
}

// Ready implements agent.Pods.
func (p *Pods) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unsettled()
}

func (p *Pods) unsettled() error {
	if p.cfg.Chained {
		return p.settledChained()
	}
	if len(p.pools) == 0 && len(p.network.PodPrefixes) > 0 {
		return fmt.Errorf("this cluster is set up for another CNI (--tunnel-prefix of its mesh API server): it gives the node %v and no prefix for pods; start the agent with --cni-mode=chained", p.network.PodPrefixes)
	}
	if len(p.pools) == 0 {
		return errors.New("this node has no pod prefixes yet: its cluster has not given it any (see the agent's log, and the node's podCIDRs)")
	}
	return nil
}

// allocate finds or makes the pod's record. It is on disk when it returns, so
// that a crash right after cannot give the address to somebody else.
func (p *Pods) allocate(r agent.PodRequest) (*pod, error) {
	now := p.cfg.Now()
	p.expire(now)
	rec := p.pods[r.UID]
	if rec == nil {
		rec = &pod{UID: r.UID, Added: now, MTU: p.network.PodMTU}
		for _, pl := range p.pools {
			a, err := pl.take(r.UID, now)
			if err != nil {
				p.release(rec, now)
				return nil, err
			}
			rec.Addresses = append(rec.Addresses, a)
		}
		p.pods[r.UID] = rec
	}
	if rec.ContainerID != r.ContainerID || rec.Netns != r.Netns {
		rec.MTU = p.network.PodMTU
	}
	rec.Network, rec.Namespace, rec.Name, rec.ContainerID, rec.Netns, rec.IfName = r.Network, r.Namespace, r.Name, r.ContainerID, r.Netns, r.IfName
	p.departed = slices.DeleteFunc(p.departed, func(d departed) bool { return d.UID == r.UID })
	return rec, p.save()
}

// List returns the connected pods.
func (p *Pods) List(ctx context.Context) ([]agent.LocalPod, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.local(), nil
}

// Start guards the links of the pods that are connected, tells Changed what there
// is, and says so again on every change. A link that cannot be guarded is an
// error, after all others were tried: what guarded it before still does.
func (p *Pods) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	if p.cfg.Guard != nil {
		for uid, index := range p.index {
			if err := p.cfg.Guard(int(index)); err != nil {
				errs = append(errs, fmt.Errorf("guard the link of pod %s: %w", uid, err))
			}
		}
	}
	p.announce()
	return errors.Join(errs...)
}

func (p *Pods) local() []agent.LocalPod {
	out := make([]agent.LocalPod, 0, len(p.index))
	for uid, index := range p.index {
		rec := p.pods[uid]
		link := p.link(rec)
		out = append(out, agent.LocalPod{UID: uid, Namespace: rec.Namespace, Name: rec.Name, Addresses: rec.Addresses, IfIndex: index,
			PodMAC: agent.MAC(link.PodMAC), HostMAC: agent.MAC(link.HostMAC), Identity: rec.Identity})
	}
	slices.SortFunc(out, func(a, b agent.LocalPod) int { return strings.Compare(a.UID, b.UID) })
	return out
}

// announce is called with the lock held.
func (p *Pods) announce() {
	if p.cfg.Changed != nil {
		p.cfg.Changed(p.local())
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Pods) save() error {
	st := podState{Version: podStateVersion, Freed: p.allFreed(), Departed: p.departed}
	for _, r := range p.pods {
		st.Pods = append(st.Pods, *r)
	}
	if err := writeFile(p.file(), st.encode()); err != nil {
		return fmt.Errorf("keep pod state: %w", err)
	}
	return nil
}

func (p *Pods) link(r *pod) podLink {
	if r.chained() {
		return chainedLink(r)
	}
	return newPodLink(r.UID, r.IfName, r.Addresses, r.MTU)
}

// result is what CNI hears: addresses with their full length, the gateway that
// the default routes name.
func result(l podLink) agent.PodResult {
	out := agent.PodResult{IfName: l.PodIf, HostIfName: l.HostIf, MAC: l.PodMAC.String(), HostMAC: l.HostMAC.String(), MTU: l.MTU}
	for _, a := range l.Addresses {
		out.IPs = append(out.IPs, agent.PodIP{Address: netip.PrefixFrom(a, a.BitLen()), Gateway: gatewayOf(a)})
		out.Routes = append(out.Routes, netip.PrefixFrom(zeroOf(a), 0))
	}
	return out
}
