package clustermesh

import (
	"encoding/binary"
	"slices"
	"strings"
	"unsafe"
)

// interner shares equal strings and port lists among the records of one
// cluster. It belongs to one decoder and so to one goroutine. The strings it
// is given may alias a receive buffer; what it returns never does.
type interner struct {
	strings map[string]string
	ports   map[string][]Port
	named   map[string][]NamedPort
	scratch []byte
	slab    slab
}

// maxInterned bounds the memory of the tables themselves under churn; beyond
// it they start afresh, which costs sharing with older records only.
const maxInterned = 1 << 15

func newInterner() *interner {
	return &interner{strings: map[string]string{}, ports: map[string][]Port{}, named: map[string][]NamedPort{}}
}

// string returns a shared copy of s. A nil interner copies.
func (in *interner) string(s string) string {
	if s == "" {
		return ""
	}
	if in == nil {
		return strings.Clone(s)
	}
	if shared, ok := in.strings[s]; ok {
		return shared
	}
	if len(in.strings) >= maxInterned {
		clear(in.strings)
	}
	own := in.slab.string(s)
	in.strings[own] = own
	return own
}

// unique returns a copy of s that is not worth sharing.
func (in *interner) unique(s string) string {
	if in == nil {
		return strings.Clone(s)
	}
	return in.slab.string(s)
}

// portList returns a shared copy of ports. It may not be modified.
func (in *interner) portList(ports []Port) []Port {
	if len(ports) == 0 {
		return nil
	}
	if in == nil {
		return in.ownPorts(ports)
	}
	key := in.scratch[:0]
	for _, p := range ports {
		key = append(key, byte(p.Protocol), byte(len(p.Name)))
		key = append(key, p.Name...)
		key = binary.BigEndian.AppendUint16(key, p.Port)
		key = binary.BigEndian.AppendUint16(key, p.NodePort)
	}
	in.scratch = key
	if shared, ok := in.ports[string(key)]; ok {
		return shared
	}
	if len(in.ports) >= maxInterned {
		clear(in.ports)
	}
	own := in.ownPorts(ports)
	in.ports[string(key)] = own
	return own
}

func (in *interner) ownPorts(ports []Port) []Port {
	own := slices.Clone(ports)
	for i := range own {
		own[i].Name = in.string(own[i].Name)
	}
	return own
}

// namedPorts returns a shared copy of ports. It may not be modified.
func (in *interner) namedPorts(ports []NamedPort) []NamedPort {
	if len(ports) == 0 {
		return nil
	}
	if in == nil {
		return in.ownNamedPorts(ports)
	}
	key := in.scratch[:0]
	for _, p := range ports {
		key = append(key, byte(p.Protocol), byte(len(p.Name)))
		key = append(key, p.Name...)
		key = binary.BigEndian.AppendUint16(key, p.Port)
	}
	in.scratch = key
	if shared, ok := in.named[string(key)]; ok {
		return shared
	}
	if len(in.named) >= maxInterned {
		clear(in.named)
	}
	own := in.ownNamedPorts(ports)
	in.named[string(key)] = own
	return own
}

func (in *interner) ownNamedPorts(ports []NamedPort) []NamedPort {
	own := slices.Clone(ports)
	for i := range own {
		own[i].Name = in.string(own[i].Name)
	}
	return own
}

// slab copies strings into shared chunks while a whole list is read: one
// allocation for hundreds of names. A chunk lives as long as any string in it,
// so once a view is complete its slab is sealed and later strings stand alone.
type slab struct {
	free   []byte
	sealed bool
}

const slabChunk = 16 << 10

func (s *slab) string(text string) string {
	return s.bytes(unsafe.Slice(unsafe.StringData(text), len(text))) // read only
}

// bytes is string for text that is still in a buffer.
func (s *slab) bytes(text []byte) string {
	if len(text) == 0 {
		return ""
	}
	if s.sealed || len(text) > slabChunk/16 {
		return string(text)
	}
	if len(text) > len(s.free) {
		s.free = make([]byte, slabChunk)
	}
	n := copy(s.free, text)
	own := s.free[:n:n]
	s.free = s.free[n:]
	return unsafe.String(&own[0], n) // own is never written again
}

// seal ends the sharing of chunks.
func (s *slab) seal() { s.free, s.sealed = nil, true }
