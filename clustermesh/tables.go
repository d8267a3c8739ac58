package clustermesh

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
)

// symbols numbers strings, so that rows hold four bytes for a name that many share.
type symbols struct {
	list  []string
	index map[string]uint32
}

// number is the number of s; the empty string is 0.
func (t *symbols) number(s string, own func(string) string) uint32 {
	if n, ok := t.index[s]; ok {
		return n
	}
	if t.index == nil {
		t.index = map[string]uint32{"": 0}
		t.list = append(t.list, "")
		if s == "" {
			return 0
		}
	}
	s = own(s)
	n := uint32(len(t.list))
	t.list = append(t.list, s)
	t.index[s] = n
	return n
}

// addressTable holds a cluster's address records: the most numerous kind by
// far, so a row has some 80 bytes and shares what it can.
type addressTable struct {
	rows    *rowTable[addressKey, addressRow]
	symbols symbols // node names and namespaces
	ports   [][]NamedPort
	portsAt map[*NamedPort]uint32
	in      *interner
}

type addressKey struct {
	addr [16]byte // IPv4 v4-mapped
	bits uint8    // of the 16 bytes
	node uint32   // symbol
}

type addressRow struct {
	text      string // the pod's name, then the owner if it is no UUID
	origin    Origin
	owner     [16]byte // UUID, if ownerUUID
	identity  Identity
	namespace uint32 // symbol
	ports     uint32 // index + 1
	podLen    uint16
	ownerUUID bool
}

func newAddressTable() addressTable {
	return addressTable{rows: newRowTable[addressKey, addressRow](), portsAt: map[*NamedPort]uint32{}, in: newInterner()}
}

// key is the row's key; ok is false if the node has never been seen.
func (t *addressTable) key(n AddressName) (addressKey, bool) {
	node, ok := t.symbols.index[n.Node]
	return makeAddressKey(n.Prefix, node), ok && n.Prefix.IsValid()
}

func makeAddressKey(p netip.Prefix, node uint32) addressKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return addressKey{addr: p.Addr().As16(), bits: uint8(bits), node: node}
}

// put returns the footprints of what was under the key and of what is now.
func (t *addressTable) put(a *Address) (old, now uint64, had bool) {
	row, had := t.rows.upsert(makeAddressKey(a.Name.Prefix, t.symbols.number(a.Name.Node, t.in.unique)))
	if had {
		old = t.footprint(row)
	}
	*row = addressRow{
		origin: a.Origin, identity: a.Identity, podLen: uint16(len(a.Pod)),
		namespace: t.symbols.number(a.Namespace, t.in.unique),
	}
	if id, ok := parseUUID(a.Owner); ok {
		row.owner, row.ownerUUID = id, true
		row.text = t.in.unique(a.Pod)
	} else {
		row.text = t.in.unique(a.Pod + a.Owner)
	}
	if len(a.NamedPorts) > 0 {
		row.ports = t.portsIndex(a.NamedPorts)
	}
	return old, t.footprint(row), had
}

func (t *addressTable) portsIndex(ports []NamedPort) uint32 {
	shared := t.in.namedPorts(ports)
	if i, ok := t.portsAt[&shared[0]]; ok {
		return i
	}
	t.ports = append(t.ports, shared)
	i := uint32(len(t.ports))
	t.portsAt[&shared[0]] = i
	return i
}

func (t *addressTable) get(n AddressName) (Address, bool) {
	k, ok := t.key(n)
	if !ok {
		return Address{}, false
	}
	row := t.rows.get(k)
	if row == nil {
		return Address{}, false
	}
	return t.record(k, row), true
}

// size is the footprint of what is under n.
func (t *addressTable) size(n AddressName) (uint64, bool) {
	k, ok := t.key(n)
	if !ok {
		return 0, false
	}
	row := t.rows.get(k)
	if row == nil {
		return 0, false
	}
	return t.footprint(row), true
}

func (t *addressTable) footprint(row *addressRow) uint64 {
	ports := 0
	if row.ports > 0 {
		ports = len(t.ports[row.ports-1])
	}
	return addressFootprint(len(row.text), ports)
}

func (t *addressTable) remove(n AddressName) {
	if k, ok := t.key(n); ok {
		t.rows.delete(k)
	}
}

func (t *addressTable) all(yield func(Address) bool) {
	t.rows.all(func(k addressKey, row *addressRow) bool { return yield(t.record(k, row)) })
}

func (t *addressTable) record(k addressKey, row *addressRow) Address {
	addr, bits := netip.AddrFrom16(k.addr), int(k.bits)
	if addr.Is4In6() {
		addr, bits = addr.Unmap(), bits-96
	}
	a := Address{
		Name:     AddressName{Node: t.symbols.list[k.node], Prefix: netip.PrefixFrom(addr, bits)},
		Identity: row.identity, Namespace: t.symbols.list[row.namespace],
		Pod: row.text[:row.podLen], Owner: row.text[row.podLen:], Origin: row.origin,
	}
	if row.ownerUUID {
		a.Owner = formatUUID(row.owner)
	}
	if row.ports > 0 {
		a.NamedPorts = t.ports[row.ports-1]
	}
	return a
}

func addressFootprint(text, ports int) uint64 { return uint64(96 + text + 24*ports) }

// parseUUID reads the one spelling that formatUUID writes: lower case, hyphens.
func parseUUID(s string) (id [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			continue
		}
		var d byte
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			d = c - '0'
		case 'a' <= c && c <= 'f':
			d = c - 'a' + 10
		default:
			return id, false
		}
		id[n/2] = id[n/2]<<4 | d
		n++
	}
	return id, true
}

func formatUUID(id [16]byte) string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// identityTable holds a cluster's identities: label keys are numbered, values
// inline, one string a row.
type identityTable struct {
	rows    *rowTable[Identity, identityRow]
	keys    symbols
	in      *interner
	scratch []byte
}

type identityRow struct {
	packed string // per label: uvarint key symbol, uvarint length, value
	labels uint16
	origin Origin
}

func newIdentityTable() identityTable {
	return identityTable{rows: newRowTable[Identity, identityRow](), in: newInterner()}
}

// put returns the footprints of what was under the key and of what is now.
func (t *identityTable) put(r *IdentityRecord) (old, now uint64, had bool) {
	b := t.scratch[:0]
	for _, l := range r.Labels {
		b = binary.AppendUvarint(b, uint64(t.keys.number(l.Key, t.in.unique)))
		b = binary.AppendUvarint(b, uint64(len(l.Value)))
		b = append(b, l.Value...)
	}
	t.scratch = b
	row, had := t.rows.upsert(r.ID)
	if had {
		old = row.footprint()
	}
	*row = identityRow{packed: t.in.slab.bytes(b), labels: uint16(len(r.Labels)), origin: r.Origin}
	return old, row.footprint(), had
}

func (row *identityRow) footprint() uint64 { return identityFootprint(len(row.packed)) }

func identityFootprint(packed int) uint64 { return uint64(64 + packed) }

func (t *identityTable) get(id Identity) (IdentityRecord, bool) {
	row := t.rows.get(id)
	if row == nil {
		return IdentityRecord{}, false
	}
	return t.record(id, row), true
}

func (t *identityTable) record(id Identity, row *identityRow) IdentityRecord {
	r := IdentityRecord{ID: id, Origin: row.origin}
	if row.labels > 0 {
		r.Labels = make([]Label, 0, row.labels)
	}
	for rest := row.packed; rest != ""; {
		var key, n uint64
		key, rest = uvarint(rest)
		n, rest = uvarint(rest)
		r.Labels = append(r.Labels, Label{Key: t.keys.list[key], Value: rest[:n]})
		rest = rest[n:]
	}
	return r
}

func (t *identityTable) size(id Identity) (uint64, bool) {
	if row := t.rows.get(id); row != nil {
		return row.footprint(), true
	}
	return 0, false
}

func (t *identityTable) remove(id Identity) { t.rows.delete(id) }

func (t *identityTable) all(yield func(IdentityRecord) bool) {
	t.rows.all(func(id Identity, row *identityRow) bool { return yield(t.record(id, row)) })
}

// uvarint reads what binary.AppendUvarint wrote at the front of s.
func uvarint(s string) (n uint64, rest string) {
	for i, shift := 0, 0; ; i, shift = i+1, shift+7 {
		n |= uint64(s[i]&0x7f) << shift
		if s[i] < 0x80 {
			return n, s[i+1:]
		}
	}
}
