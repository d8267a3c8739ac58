package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// Maps are the kernel's tables, open. See the package comment for their rows.
type Maps struct {
	Services      *ebpf.Map
	Slots         *ebpf.Map
	NodeHealth    *ebpf.Map
	ClusterHealth *ebpf.Map
	IPCache       *ebpf.Map
	IPPrefixes    *ebpf.Map
	Endpoints     *ebpf.Map
	Subjects      *ebpf.Map
	Policy        *ebpf.Map
	Classes       *ebpf.Map
	ClassPrefixes *ebpf.Map
	Maglev        *ebpf.Map
	SourceRanges  *ebpf.Map
	Config        *ebpf.Map
	Devices       *ebpf.Map
	Epoch         *ebpf.Map
	Flows         *ebpf.Map
	Fragments     *ebpf.Map
	Affinity      *ebpf.Map
	Events        *ebpf.Map
	SocketReverse *ebpf.Map
	UDPChoice     *ebpf.Map
	Counts        *ebpf.Map
}

// Sizes are the most rows each map holds; 0 is the default in src/tables.h.
// Room costs 16 bytes a row (rounded up to a power of two) and rows in use cost
// their own size, but for SocketReverse and UDPChoice, which have all their rows
// (about 110 and 140 bytes) from the start and push out the least recently used.
type Sizes struct {
	Services      uint32 // 65,536
	Slots         uint32 // 524,288
	NodeHealth    uint32 // 16,384
	ClusterHealth uint32 // 4,096
	IPCache       uint32 // 524,288
	IPPrefixes    uint32 // 65,536
	Endpoints     uint32 // 4,096
	Subjects      uint32 // 4,096
	Policy        uint32 // 262,144
	Classes       uint32 // 65,536
	ClassPrefixes uint32 // 16,384
	Maglev        uint32 // 65,536 pieces of 128 entries
	SourceRanges  uint32 // 16,384
	Flows         uint32 // 131,072
	Fragments     uint32 // 8,192
	Affinity      uint32 // 65,536
	Events        uint32 // 1,048,576 bytes
	SocketReverse uint32 // 65,536
	UDPChoice     uint32 // 32,768
}

// table ties a map's name to its field and its size option.
type table struct {
	name string
	open **ebpf.Map
	size uint32
}

func (m *Maps) tables(s Sizes) []table {
	return []table{
		{rowsMapTmbServices1, &m.Services, s.Services},
		{rowsMapTmbSlots1, &m.Slots, s.Slots},
		{rowsMapTmbNodehlth1, &m.NodeHealth, s.NodeHealth},
		{rowsMapTmbClushlth1, &m.ClusterHealth, s.ClusterHealth},
		{rowsMapTmbIpcache1, &m.IPCache, s.IPCache},
		{rowsMapTmbIpprefix1, &m.IPPrefixes, s.IPPrefixes},
		{rowsMapTmbEndpoint2, &m.Endpoints, s.Endpoints},
		{rowsMapTmbSubject1, &m.Subjects, s.Subjects},
		{rowsMapTmbPolicy1, &m.Policy, s.Policy},
		{rowsMapTmbClass1, &m.Classes, s.Classes},
		{rowsMapTmbClsprefix1, &m.ClassPrefixes, s.ClassPrefixes},
		{rowsMapTmbMaglev1, &m.Maglev, s.Maglev},
		{rowsMapTmbSrcrange1, &m.SourceRanges, s.SourceRanges},
		{rowsMapTmbConfig1, &m.Config, 0},
		{rowsMapTmbDevices1, &m.Devices, 0},
		{rowsMapTmbEpoch1, &m.Epoch, 0},
		{rowsMapTmbFlow1, &m.Flows, s.Flows},
		{rowsMapTmbFrag1, &m.Fragments, s.Fragments},
		{rowsMapTmbAffinity1, &m.Affinity, s.Affinity},
		{rowsMapTmbEvents1, &m.Events, s.Events},
		{rowsMapTmbReverse1, &m.SocketReverse, s.SocketReverse},
		{rowsMapTmbChoice1, &m.UDPChoice, s.UDPChoice},
		{rowsMapTmbCounters1, &m.Counts, 0},
	}
}

// OpenMaps opens the maps pinned in dir read-only, for tools that show them. It
// takes no lock: an agent may be at work on them. The caller closes them.
func OpenMaps(dir string) (*Maps, error) {
	m := new(Maps)
	for _, t := range m.tables(Sizes{}) {
		opened, err := ebpf.LoadPinnedMap(filepath.Join(dir, t.name), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("open map %s in %s: %w (has an agent run with this bpffs directory?)", t.name, dir, err)
		}
		*t.open = opened
	}
	return m, nil
}

// Close closes the maps; what is pinned stays.
func (m *Maps) Close() error {
	var errs []error
	for _, t := range m.tables(Sizes{}) {
		if *t.open != nil {
			errs = append(errs, (*t.open).Close())
		}
	}
	return errors.Join(errs...)
}

// byName is what programs are loaded against.
func (m *Maps) byName() map[string]*ebpf.Map {
	out := make(map[string]*ebpf.Map)
	for _, t := range m.tables(Sizes{}) {
		out[t.name] = *t.open
	}
	return out
}

// resized is a map that was copied to one of another size. The old one stays
// pinned and in use until the programs have been replaced.
type resized struct {
	name     string
	old, new *ebpf.Map
}

// openMaps opens the pinned maps and makes those that are missing. A pinned map
// of another size is copied; commit the returned ones when programs use them.
func openMaps(dir string, sizes Sizes) (*Maps, []resized, error) {
	spec, err := loadRows()
	if err != nil {
		return nil, nil, err
	}
	m := new(Maps)
	var moved []resized
	for _, t := range m.tables(sizes) {
		ms := spec.Maps[t.name].Copy()
		if t.size != 0 {
			ms.MaxEntries = t.size
		}
		opened, old, err := openMap(dir, ms)
		if err != nil {
			for _, r := range moved {
				r.old.Close()
			}
			m.Close()
			return nil, nil, err
		}
		*t.open = opened
		if old != nil {
			moved = append(moved, resized{t.name, old, opened})
		}
	}
	return m, moved, nil
}

// openMap reuses the pinned map, or makes and pins it. If the size differs it
// returns a copy of the wanted size, not pinned, and the pinned one as old.
func openMap(dir string, spec *ebpf.MapSpec) (m, old *ebpf.Map, err error) {
	pin := filepath.Join(dir, spec.Name)
	pinned, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		m, err = ebpf.NewMap(spec)
		if err != nil {
			return nil, nil, fmt.Errorf("make map %s for %d rows: %w", spec.Name, spec.MaxEntries, err)
		}
		if err := m.Pin(pin); err != nil {
			m.Close()
			return nil, nil, fmt.Errorf("pin map: %w", err)
		}
		return m, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open pinned map %s: %w", pin, err)
	}
	if err := sameLayout(spec, pinned); err != nil {
		pinned.Close()
		return nil, nil, fmt.Errorf("%s is not a map of this version (%w); nothing was changed: "+
			"run the version that made it, or unload (this cuts service translation) and start again", pin, err)
	}
	if pinned.MaxEntries() == spec.MaxEntries {
		return pinned, nil, nil
	}
	m, err = resize(spec, pinned)
	if err != nil {
		pinned.Close()
		return nil, nil, err
	}
	return m, pinned, nil
}

func sameLayout(spec *ebpf.MapSpec, m *ebpf.Map) error {
	for _, f := range []struct {
		what      string
		got, want uint32
	}{
		{"type", uint32(m.Type()), uint32(spec.Type)},
		{"key size", m.KeySize(), spec.KeySize},
		{"value size", m.ValueSize(), spec.ValueSize},
		{"flags", m.Flags(), spec.Flags},
	} {
		if f.got != f.want {
			return fmt.Errorf("%s %d, expected %d", f.what, f.got, f.want)
		}
	}
	return nil
}

// resize makes a map of the spec's size with the rows of old. Counters begin at
// zero: another number of them is another version's list of reasons, by which the
// old rows may mean something else.
func resize(spec *ebpf.MapSpec, old *ebpf.Map) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make map %s for %d rows: %w", spec.Name, spec.MaxEntries, err)
	}
	if old.Type() == ebpf.PerCPUArray {
		return m, nil
	}
	n, err := copyRows(m, old, ebpf.UpdateAny)
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("resize map %s from %d to %d rows: row %d: %w; keep the old size, or one that holds its rows",
			spec.Name, old.MaxEntries(), spec.MaxEntries, n+1, err)
	}
	return m, nil
}

// copyRows copies and counts. Rows that are there already are left alone.
func copyRows(to, from *ebpf.Map, flags ebpf.MapUpdateFlags) (n int, err error) {
	var key, value []byte
	rows := from.Iterate()
	for rows.Next(&key, &value) {
		if err := to.Update(key, value, flags); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return n, err
		}
		n++
	}
	if err := rows.Err(); err != nil && !(from.Type() == ebpf.LRUHash && errors.Is(err, ebpf.ErrIterationAborted)) {
		return n, err // an LRU map may change under us, and losing rows is its nature
	}
	return n, nil
}

// commit puts a resized map in the place of the old one, once no program uses
// that any more. What programs wrote in between comes along.
func (r resized) commit(dir string) error {
	if r.old.Type() == ebpf.LRUHash {
		if _, err := copyRows(r.new, r.old, ebpf.UpdateNoExist); err != nil {
			return fmt.Errorf("resize map %s: %w", r.name, err)
		}
	}
	return pinOver(r.new, filepath.Join(dir, r.name))
}

// newSuffix marks a pin on its way to its place. bpffs allows no dots.
const newSuffix = "-new"

// pinOver pins in the place of whatever was there, in one step.
func pinOver(o interface{ Pin(string) error }, path string) error {
	tmp := path + newSuffix
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := o.Pin(tmp); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("move pin to its place: %w", err)
	}
	return nil
}
