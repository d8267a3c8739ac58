package kvstore

import (
	"iter"
	"slices"
	"strings"
)

// A tree is an immutable ordered map of KVs: a B-tree whose leaves are sorted
// slices that can be handed to readers as they are. Changing it goes through an
// editor, which copies a node the first time it touches it: a put copies one
// path, a commit of many puts each node once.
type tree struct {
	root *node
	size int
}

const (
	leafMax = 32 // KVs per leaf: 2 KiB are copied for a single put
	kidsMax = 64 // children per inner node
)

// node is a leaf (kids nil) or an inner node (kvs nil).
type node struct {
	owner *editor // the editor that may change it in place
	kvs   []KV
	kids  []*node
	keys  []string // keys[i] is a lower bound of kids[i]; keys[0] is not used
}

// childOf is the child in which key is, or would be.
func (n *node) childOf(key string) int {
	lo, hi := 1, len(n.kids)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if n.keys[mid] <= key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// find is the place of key among kvs.
func find(kvs []KV, key string) (int, bool) {
	lo, hi := 0, len(kvs)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if kvs[mid].Key < key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(kvs) && kvs[lo].Key == key
}

func (t tree) get(key string) (KV, bool) {
	n := t.root
	if n == nil {
		return KV{}, false
	}
	for n.kids != nil {
		n = n.kids[n.childOf(key)]
	}
	i, ok := find(n.kvs, key)
	if !ok {
		return KV{}, false
	}
	return n.kvs[i], true
}

// chunks yields the KVs under prefix in key order, as parts of leaves.
func (t tree) chunks(prefix string) iter.Seq[[]KV] {
	return func(yield func([]KV) bool) {
		if t.root != nil {
			t.root.walk(prefix, yield)
		}
	}
}

// walk reports whether the iteration should go on to the next node.
func (n *node) walk(prefix string, yield func([]KV) bool) bool {
	if n.kids != nil {
		for i := n.childOf(prefix); i < len(n.kids); i++ {
			if i > 0 && n.keys[i] > prefix && !strings.HasPrefix(n.keys[i], prefix) {
				return false
			}
			if !n.kids[i].walk(prefix, yield) {
				return false
			}
		}
		return true
	}
	kvs := n.kvs
	if len(kvs) == 0 {
		return true
	}
	from, _ := find(kvs, prefix)
	kvs = kvs[from:]
	if len(kvs) == 0 {
		return true
	}
	to := len(kvs)
	if !strings.HasPrefix(kvs[to-1].Key, prefix) {
		to, _ = slices.BinarySearchFunc(kvs, prefix, func(kv KV, prefix string) int {
			if strings.HasPrefix(kv.Key, prefix) {
				return -1
			}
			return 1
		})
	}
	if to > 0 && !yield(kvs[:to:to]) {
		return false
	}
	return to == len(kvs)
}

// editor builds a changed tree; the one it began with stays as it is.
type editor struct {
	root *node
	size int
}

func (t tree) edit() *editor { return &editor{root: t.root, size: t.size} }

// done returns the changed tree. The editor must not be used afterwards.
// It forgets the tree: nodes name their editor as owner and must not keep a
// whole old tree alive through it.
func (e *editor) done() tree {
	t := tree{e.root, e.size}
	e.root = nil
	return t
}

func (e *editor) get(key string) (KV, bool) { return tree{root: e.root}.get(key) }

// own returns n, or a copy of it that this editor may change.
func (e *editor) own(n *node) *node {
	if n.owner == e {
		return n
	}
	c := &node{owner: e}
	if n.kids == nil {
		c.kvs = append(make([]KV, 0, min(leafMax+1, len(n.kvs)+2)), n.kvs...)
	} else {
		c.kids = append(make([]*node, 0, len(n.kids)+1), n.kids...)
		c.keys = append(make([]string, 0, len(n.keys)+1), n.keys...)
	}
	return c
}

func (e *editor) put(kv KV) {
	if e.root == nil {
		e.root = &node{owner: e}
	}
	root, right, at := e.insert(e.root, kv)
	if right != nil {
		root = &node{owner: e, kids: []*node{root, right}, keys: []string{"", at}}
	}
	e.root = root
}

// insert puts kv below n and returns the node that takes n's place and, if it
// had to be split, its right half with its lower bound.
func (e *editor) insert(n *node, kv KV) (left, right *node, at string) {
	n = e.own(n)
	if n.kids == nil {
		i, ok := find(n.kvs, kv.Key)
		if ok {
			n.kvs[i] = kv
			return n, nil, ""
		}
		e.size++
		n.kvs = slices.Insert(n.kvs, i, kv)
		return e.split(n, i == len(n.kvs)-1)
	}
	i := n.childOf(kv.Key)
	kid, more, bound := e.insert(n.kids[i], kv)
	n.kids[i] = kid
	if more != nil {
		n.kids = slices.Insert(n.kids, i+1, more)
		n.keys = slices.Insert(n.keys, i+1, bound)
		return e.split(n, i+1 == len(n.kids)-1)
	}
	return n, nil, ""
}

// split halves n if it is too full. Where keys arrive in order (a list), it
// leaves the left part full instead.
func (e *editor) split(n *node, atEnd bool) (left, right *node, at string) {
	right = &node{owner: e}
	if n.kids == nil {
		if len(n.kvs) <= leafMax {
			return n, nil, ""
		}
		half := len(n.kvs) / 2
		if atEnd {
			half = len(n.kvs) - 1
		}
		right.kvs = append(make([]KV, 0, leafMax+1), n.kvs[half:]...)
		clear(n.kvs[half:])
		n.kvs = n.kvs[:half]
		return n, right, right.kvs[0].Key
	}
	if len(n.kids) <= kidsMax {
		return n, nil, ""
	}
	half := len(n.kids) / 2
	if atEnd {
		half = len(n.kids) - 1
	}
	right.kids = append(make([]*node, 0, kidsMax+1), n.kids[half:]...)
	right.keys = append(make([]string, 0, kidsMax+1), n.keys[half:]...)
	clear(n.kids[half:])
	clear(n.keys[half:])
	n.kids, n.keys = n.kids[:half], n.keys[:half]
	return n, right, right.keys[0]
}

// delete removes key, which must be present.
func (e *editor) delete(key string) {
	e.root = e.remove(e.root, key)
	e.size--
	for e.root != nil && len(e.root.kids) == 1 {
		e.root = e.root.kids[0]
	}
}

// remove returns the node that takes n's place, nil if nothing is left of it.
func (e *editor) remove(n *node, key string) *node {
	n = e.own(n)
	if n.kids == nil {
		i, _ := find(n.kvs, key)
		n.kvs = slices.Delete(n.kvs, i, i+1)
		if len(n.kvs) == 0 {
			return nil
		}
		return n
	}
	i := n.childOf(key)
	kid := e.remove(n.kids[i], key)
	if kid == nil {
		n.kids = slices.Delete(n.kids, i, i+1)
		n.keys = slices.Delete(n.keys, i, i+1)
		if len(n.kids) == 0 {
			return nil
		}
		return n
	}
	n.kids[i] = kid
	e.join(n, i)
	return n
}

// join merges child i of n with a neighbour if both are small, so that a tree
// that was emptied does not stay wide.
func (e *editor) join(n *node, i int) {
	if i == len(n.kids)-1 {
		i--
	}
	if i < 0 {
		return
	}
	a, b := n.kids[i], n.kids[i+1]
	if a.kids == nil {
		if len(a.kvs)+len(b.kvs) > leafMax/2 {
			return
		}
		a = e.own(a)
		a.kvs = append(a.kvs, b.kvs...)
	} else {
		if len(a.kids)+len(b.kids) > kidsMax/2 {
			return
		}
		a = e.own(a)
		a.keys = append(append(a.keys, n.keys[i+1]), b.keys[1:]...)
		a.kids = append(a.kids, b.kids...)
	}
	n.kids[i] = a
	n.kids = slices.Delete(n.kids, i+1, i+2)
	n.keys = slices.Delete(n.keys, i+1, i+2)
}
