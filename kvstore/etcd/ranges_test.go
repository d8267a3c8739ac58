package etcd

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A tiny alphabet with the bytes that matter at the edges.
var edgeKey = rapid.Custom(func(t *rapid.T) string {
	return string(rapid.SliceOfN(rapid.SampledFrom([]byte{0, 'a', 'b', 0xfe, 0xff}), 0, 4).Draw(t, "key"))
})

// slowHas is the definition of an etcd range, word by word.
func slowHas(key, from, end string) bool {
	switch end {
	case "":
		return key == from
	case "\x00":
		return key >= from
	}
	return key >= from && key < end
}

func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, end := edgeKey.Draw(t, "from"), edgeKey.Draw(t, "end")
		prefix, key := edgeKey.Draw(t, "prefix"), edgeKey.Draw(t, "key")
		r := parseRange([]byte(from), []byte(end))
		has := slowHas(key, from, end)
		if r.has(key) != has {
			t.Fatalf("%s has %q: %v", r, key, r.has(key))
		}
		if has && !strings.HasPrefix(key, r.prefix()) {
			t.Fatalf("%s has %q but its prefix is %q", r, key, r.prefix())
		}
		if has && r.within(prefix) && !strings.HasPrefix(key, prefix) {
			t.Fatalf("%s is said to be within %q but has %q", r, prefix, key)
		}
		if r.after(key) && r.form != rangeEmpty && (has || key < from) {
			t.Fatalf("%q is said to lie behind %s", key, r)
		}
		k, e := prefixRange(prefix)
		if whole := parseRange(k, e); !whole.within(prefix) || whole.prefix() != prefix && prefix != "" && bytes.Trim([]byte(prefix), "\xff") != nil {
			t.Fatalf("the range of %q is %s, prefix %q", prefix, whole, whole.prefix())
		}
	})
}

func FuzzRange(f *testing.F) {
	f.Add([]byte("/a/"), []byte("/a0"), "/a/", "/a/x")
	f.Add([]byte{0}, []byte{0}, "", "")
	f.Add([]byte("\xff"), []byte{}, "\xff\xff", "\xff\xff\x00")
	f.Fuzz(func(t *testing.T, from, end []byte, prefix, key string) {
		r := parseRange(from, end)
		if r.has(key) != slowHas(key, string(from), string(end)) {
			t.Fatalf("%s has %q: %v", r, key, r.has(key))
		}
		if r.has(key) && (!strings.HasPrefix(key, r.prefix()) || r.within(prefix) && !strings.HasPrefix(key, prefix)) {
			t.Fatalf("%s, within %q: %v, prefix %q, key %q", r, prefix, r.within(prefix), r.prefix(), key)
		}
		_ = r.String()
	})
}
