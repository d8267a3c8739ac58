package etcd

import (
	"bytes"
	"fmt"
	"strings"
)

// keyRange is a range of keys as the etcd API writes them.
type keyRange struct {
	from string
	to   string // exclusive; "" if single or open
	form rangeForm
}

type rangeForm uint8

const (
	rangeSingle rangeForm = iota // from alone
	rangeHalf                    // [from, to)
	rangeOpen                    // from and everything after it
	rangeEmpty                   // nothing: the end is not after the beginning
)

// parseRange reads the key and range_end of a request.
func parseRange(key, end []byte) keyRange {
	r := keyRange{from: string(key)}
	switch {
	case len(end) == 0:
		r.form = rangeSingle
	case len(end) == 1 && end[0] == 0:
		r.form = rangeOpen
	case bytes.Compare(key, end) >= 0:
		r.form = rangeEmpty
	default:
		r.form, r.to = rangeHalf, string(end)
	}
	return r
}

func (r keyRange) String() string {
	switch r.form {
	case rangeSingle:
		return fmt.Sprintf("key %q", r.from)
	case rangeOpen:
		return fmt.Sprintf("all keys from %q", r.from)
	case rangeEmpty:
		return fmt.Sprintf("an empty range at %q", r.from)
	}
	return fmt.Sprintf("keys from %q to %q", r.from, r.to)
}

func (r keyRange) has(key string) bool {
	switch r.form {
	case rangeSingle:
		return key == r.from
	case rangeOpen:
		return key >= r.from
	case rangeEmpty:
		return false
	}
	return key >= r.from && key < r.to
}

// after reports whether key lies behind the whole range.
func (r keyRange) after(key string) bool {
	switch r.form {
	case rangeSingle:
		return key > r.from
	case rangeOpen:
		return false
	case rangeEmpty:
		return true
	}
	return key >= r.to
}

// within reports whether every key of r begins with prefix.
func (r keyRange) within(prefix string) bool {
	if prefix == "" {
		return true
	}
	if !strings.HasPrefix(r.from, prefix) {
		return false
	}
	if r.form == rangeSingle || r.form == rangeEmpty {
		return true
	}
	end := string(prefixEnd(prefix))
	endless := end == "\x00" // prefix is all 0xff: nothing sorts behind it
	return endless || r.form == rangeHalf && r.to <= end
}

// prefix is the longest one that all keys of r share.
func (r keyRange) prefix() string {
	switch r.form {
	case rangeOpen:
		return ""
	case rangeSingle, rangeEmpty:
		return r.from
	}
	if string(prefixEnd(r.from)) == r.to {
		return r.from
	}
	n := 0
	for n < len(r.from) && n < len(r.to) && r.from[n] == r.to[n] {
		n++
	}
	return r.from[:n]
}
