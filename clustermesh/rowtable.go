package clustermesh

import "hash/maphash"

// rowTable is a hash table for tens of thousands of small rows, made for lists:
// rows lie in chunks that are never copied, and the index is four bytes a slot.
// Against a Go map it saves half the memory and the copying while it grows.
type rowTable[K comparable, R any] struct {
	seed   maphash.Seed
	chunks []*[rowChunk]tableRow[K, R]
	alive  []uint64 // bit set: the row is in use
	index  []uint32 // row number + 1; 0 = free. Linear probing; a power of two
	free   []uint32 // row numbers
	used   int      // rows in use
	rows   uint32   // rows ever made
}

type tableRow[K comparable, R any] struct {
	key K
	row R
}

// rowChunk makes chunks of rows of 40 and of 80 bytes fit the allocator exactly.
const rowChunk = 256

func newRowTable[K comparable, R any]() *rowTable[K, R] {
	return &rowTable[K, R]{seed: maphash.MakeSeed()}
}

func (t *rowTable[K, R]) at(row uint32) *tableRow[K, R] {
	return &t.chunks[row/rowChunk][row%rowChunk]
}

// live is the word and bit that say whether a row is in use.
func (t *rowTable[K, R]) live(row uint32) (*uint64, uint64) {
	return &t.alive[row/64], 1 << (row % 64)
}

// slot is where key is in the index, or the free slot where it would go.
func (t *rowTable[K, R]) slot(key K) uint32 {
	mask := uint32(len(t.index) - 1)
	for i := uint32(maphash.Comparable(t.seed, key)) & mask; ; i = (i + 1) & mask {
		if n := t.index[i]; n == 0 || t.at(n-1).key == key {
			return i
		}
	}
}

// get returns the row of key, or nil. It is valid until the next upsert or delete.
func (t *rowTable[K, R]) get(key K) *R {
	if t.used == 0 {
		return nil
	}
	if n := t.index[t.slot(key)]; n != 0 {
		return &t.at(n - 1).row
	}
	return nil
}

// upsert returns the row of key, made if need be, and whether it was there.
func (t *rowTable[K, R]) upsert(key K) (*R, bool) {
	if 4*(t.used+1) > 3*len(t.index) {
		t.grow()
	}
	i := t.slot(key)
	if n := t.index[i]; n != 0 {
		return &t.at(n - 1).row, true
	}
	n := t.newRow()
	t.index[i] = n + 1
	t.used++
	r := t.at(n)
	r.key = key
	word, bit := t.live(n)
	*word |= bit
	return &r.row, false
}

func (t *rowTable[K, R]) newRow() uint32 {
	if last := len(t.free) - 1; last >= 0 {
		n := t.free[last]
		t.free = t.free[:last]
		return n
	}
	if int(t.rows) == len(t.chunks)*rowChunk {
		t.chunks = append(t.chunks, new([rowChunk]tableRow[K, R]))
		t.alive = append(t.alive, make([]uint64, rowChunk/64)...)
	}
	t.rows++
	return t.rows - 1
}

func (t *rowTable[K, R]) grow() {
	t.index = make([]uint32, max(16, 2*len(t.index)))
	for n := range t.rows {
		if word, bit := t.live(n); *word&bit != 0 {
			t.index[t.slot(t.at(n).key)] = n + 1
		}
	}
}

// delete removes key; the probe sequences of others are closed up behind it.
func (t *rowTable[K, R]) delete(key K) {
	if t.used == 0 {
		return
	}
	i := t.slot(key)
	n := t.index[i]
	if n == 0 {
		return
	}
	*t.at(n - 1) = tableRow[K, R]{}
	word, bit := t.live(n - 1)
	*word &^= bit
	t.free = append(t.free, n-1)
	t.used--
	t.index[i] = 0
	mask := uint32(len(t.index) - 1)
	for j := (i + 1) & mask; t.index[j] != 0; j = (j + 1) & mask {
		moved := t.index[j]
		t.index[j] = 0
		t.index[t.slot(t.at(moved-1).key)] = moved
	}
}

// all yields every row. Rows may be deleted meanwhile.
func (t *rowTable[K, R]) all(yield func(K, *R) bool) {
	for n := uint32(0); n < t.rows; n++ {
		if word, bit := t.live(n); *word&bit != 0 && !yield(t.at(n).key, &t.at(n).row) {
			return
		}
	}
}
