package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
)

// Options of Load.
type Options struct {
	// PinDir is a directory of a bpffs, ours alone; it is made if missing.
	PinDir string
	// CgroupPath is the cgroup (v2) whose sockets are translated; a v1 root that has
	// the v2 hierarchy as its folder "unified" stands for that. Empty: the root of
	// the first cgroup2 mount (FindCgroup2).
	CgroupPath string
	Sizes      Sizes
	// NoTCX attaches the tunnel by clsact although the kernel has tcx.
	NoTCX bool
	// NoRetval loads what a kernel before 5.18 would.
	NoRetval bool
	Log      *slog.Logger // nil: discard
}

// ethLen is the length of an Ethernet header.
const ethLen = 14

// Objects are loaded and attached. One goroutine owns them; Maps may be used by
// others too, as the kernel serialises map calls.
type Objects struct {
	*Maps
	pinDir string
	lock   *os.File
	log    *slog.Logger
	tunnel *ebpf.Program
	pod    podCode
	host   map[uint32]*ebpf.Collection // by the length of L2 headers, once needed
	xdp    map[xdpKind]*ebpf.Collection
	noTCX  bool

	mu   sync.Mutex // guards feat, which status reads from other goroutines
	feat Features
}

// Features says what is on, for status.
type Features struct {
	// Refusal is what connect to a service without backends fails with:
	// ECONNREFUSED, or EPERM on kernels before 5.18.
	Refusal string
	// Tunnel is tcx, clsact, or empty before AttachTunnel.
	Tunnel string
	// Pods is tcx, clsact, or empty before the first AttachPod.
	Pods string
	// Cgroup is the cgroup whose sockets are translated.
	Cgroup string
}

// Features are those of the running kernel that are in use. It may be called
// from any goroutine.
func (o *Objects) Features() Features {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.feat
}

// Load opens or makes the maps, loads the programs and attaches those of
// sockets; AttachTunnel, AttachPod and AttachHost do the rest. What an earlier process left pinned is
// taken over: rows stay, each program is replaced in one step. State of a layout
// this version does not know is refused and left as it is.
//
// The caller is in the network namespace of the node. Errors leave what worked
// before at work.
func Load(opts Options) (*Objects, error) {
	o := &Objects{pinDir: opts.PinDir, log: opts.Log, noTCX: opts.NoTCX}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	cgroup := opts.CgroupPath
	if cgroup == "" {
		found, err := FindCgroup2()
		if err != nil {
			return nil, err
		}
		cgroup = found
	}
	cgroup, err := cgroup2At(cgroup)
	if err != nil {
		return nil, err
	}
	o.feat.Cgroup = cgroup
	if err := os.MkdirAll(opts.PinDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the pin directory: %w", err)
	}
	if err := checkBPFFS(opts.PinDir); err != nil {
		return nil, err
	}
	lock, err := lockDir(opts.PinDir)
	if err != nil {
		return nil, err
	}
	o.lock = lock
	if err := o.load(opts, cgroup); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

func (o *Objects) load(opts Options, cgroup string) error {
	if err := checkPins(o.pinDir); err != nil {
		return err
	}
	maps, moved, err := openMaps(o.pinDir, opts.Sizes)
	if err != nil {
		return err
	}
	o.Maps = maps
	defer func() {
		for _, r := range moved {
			r.old.Close()
		}
	}()
	sock, err := o.loadSock(!opts.NoRetval)
	if err != nil {
		return err
	}
	defer sock.Close()
	if o.tunnel, err = loadTunnelProgram(maps, 0); err != nil {
		return err
	}
	if o.pod, err = loadPodCode(maps, ethLen); err != nil {
		return err
	}
	if err := attachSock(o.pinDir, cgroup, sock); err != nil {
		return err
	}
	if err := o.replacePods(); err != nil {
		return err
	}
	if err := o.replaceHost(); err != nil {
		return err
	}
	if err := o.replaceXDP(); err != nil {
		return err
	}
	if len(moved) == 0 {
		return nil
	}
	// The tunnel's program goes on with the old maps until it is replaced.
	if err := o.replaceTunnel(); err != nil {
		return err
	}
	for _, r := range moved {
		if err := r.commit(o.pinDir); err != nil {
			return err
		}
		o.log.Info("map resized", "map", r.name, "rows", r.new.MaxEntries(), "was", r.old.MaxEntries())
	}
	return nil
}

// Close closes what is open. Pinned maps and links stay, and work.
func (o *Objects) Close() error {
	var errs []error
	if o.tunnel != nil {
		errs = append(errs, o.tunnel.Close())
	}
	if o.pod.from != nil {
		errs = append(errs, o.pod.Close())
	}
	for _, coll := range o.host {
		coll.Close()
	}
	for _, coll := range o.xdp {
		coll.Close()
	}
	if o.Maps != nil {
		errs = append(errs, o.Maps.Close())
	}
	return errors.Join(append(errs, o.lock.Close())...)
}

// loadSock tries the object with a better refusal first, if asked to.
func (o *Objects) loadSock(retval bool) (*ebpf.Collection, error) {
	if retval {
		spec, err := loadSockRetval()
		if err != nil {
			return nil, err
		}
		coll, err := loadCollection(spec, o.Maps)
		if err == nil {
			o.feat.Refusal = "ECONNREFUSED"
			return coll, nil
		}
		o.log.Info("kernel without bpf_set_retval: services without backends refuse with EPERM", "error", err)
	}
	spec, err := loadSock()
	if err != nil {
		return nil, err
	}
	coll, err := loadCollection(spec, o.Maps)
	if err != nil {
		return nil, fmt.Errorf("load socket programs: %w", err)
	}
	o.feat.Refusal = "EPERM"
	return coll, nil
}

// loadTunnelProgram loads tunnel.c for packets with l2 bytes before the IP header.
func loadTunnelProgram(maps *Maps, l2 uint32) (*ebpf.Program, error) {
	coll, err := loadTC(loadTunnel, maps, l2)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(tunnelProgTmbTunnel), nil
}

// loadTC loads an object whose packets have l2 bytes before the IP header: 14 on
// Ethernet and in test runs, none on a tunnel device.
func loadTC(object func() (*ebpf.CollectionSpec, error), maps *Maps, l2 uint32) (*ebpf.Collection, error) {
	spec, err := object()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["tmb_l2_len"].Set(l2); err != nil {
		return nil, fmt.Errorf("set L2 length: %w", err)
	}
	coll, err := loadCollection(spec, maps)
	if err != nil {
		var names []string
		for name := range spec.Programs {
			names = append(names, name)
		}
		slices.Sort(names)
		return nil, fmt.Errorf("load %s: %w", strings.Join(names, ", "), err)
	}
	return coll, nil
}

// loadCollection loads programs against our maps, whatever sizes those have.
func loadCollection(spec *ebpf.CollectionSpec, maps *Maps) (*ebpf.Collection, error) {
	use := make(map[string]*ebpf.Map)
	for name, m := range maps.byName() {
		if ms, ok := spec.Maps[name]; ok {
			ms.MaxEntries = m.MaxEntries()
			use[name] = m
		}
	}
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: use})
}

// checkPins refuses a directory with state of ours that this version does not
// know, and clears away pins that never reached their place.
func checkPins(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	known := []string{tunnelPin}
	for _, t := range new(Maps).tables(Sizes{}) {
		known = append(known, t.name)
	}
	for _, h := range sockHooks {
		known = append(known, h.name)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case !strings.HasPrefix(name, "tmb_") || slices.Contains(known, name) || isDevicePin(name):
		case strings.HasSuffix(name, newSuffix):
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s holds %q, which this version does not know; nothing was changed: "+
				"run the version that made it, or unload (this cuts service translation) and start again", dir, name)
		}
	}
	return nil
}
