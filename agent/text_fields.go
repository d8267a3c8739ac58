package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// fields takes a line apart: its first n words, then name=value pairs.
type fields struct {
	words []string
	pairs map[string]string
	err   error
}

func splitLine(line string, n int) *fields {
	f := &fields{pairs: map[string]string{}}
	for i, word := range strings.Fields(line) {
		if i < n {
			f.words = append(f.words, word)
			continue
		}
		name, value, ok := strings.Cut(word, "=")
		if _, twice := f.pairs[name]; !ok || twice {
			f.err = fmt.Errorf("%q: want name=value, each name once", word)
		}
		f.pairs[name] = value
	}
	if len(f.words) < n {
		f.err = errors.New("too few words")
		f.words = append(f.words, make([]string, n-len(f.words))...)
	}
	return f
}

func (f *fields) fail(what, value string, err error) {
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("%s %q: %w", what, value, err)
	}
}

// take removes a pair, so that what is left over at the end is a mistake.
func (f *fields) take(name string) (string, bool) {
	v, ok := f.pairs[name]
	delete(f.pairs, name)
	return v, ok
}

func (f *fields) done() error {
	if f.err == nil {
		for name := range f.pairs {
			return fmt.Errorf("unknown field %q", name)
		}
	}
	return f.err
}

func (f *fields) number(name string, bits int) uint64 {
	s, ok := f.take(name)
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, bits)
	f.fail(name, s, err)
	return n
}

func (f *fields) parseAddr(s string) Addr {
	a, err := netip.ParseAddr(s)
	f.fail("address", s, err)
	if err != nil {
		return Addr{}
	}
	return MakeAddr(a)
}

func (f *fields) addr(name string) Addr {
	s, ok := f.take(name)
	if !ok {
		return Addr{}
	}
	return f.parseAddr(s)
}

func (f *fields) parsePrefix(s string) Prefix {
	p, err := netip.ParsePrefix(s)
	f.fail("prefix", s, err)
	if err != nil {
		return Prefix{}
	}
	return MakePrefix(p)
}

func (f *fields) addrPort(s string) (Addr, uint16) {
	ap, err := netip.ParseAddrPort(s)
	f.fail("address and port", s, err)
	if err != nil {
		return Addr{}, 0
	}
	return MakeAddr(ap.Addr()), ap.Port()
}

func (f *fields) mac(name string) (m [6]byte) {
	s, _ := f.take(name)
	hw, err := net.ParseMAC(s)
	f.fail(name, s, err)
	copy(m[:], hw)
	return m
}
