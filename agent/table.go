// Package agent turns what the clusters of the mesh say into what this node's
// kernel should hold: State → Tables → Reconcile. There is no kernel in here:
// every kernel object is a row of a Table, and agent/linux has the real ones.
package agent

import "iter"

// Table is one kind of kernel object (a BPF map, WireGuard peers, routes).
// Implementations need not be safe for concurrent use: one goroutine owns them.
//
// Rules, checked by the conformance test that the fake and the real tables run:
// Put overwrites; Put and Delete are idempotent; deleting what is absent is not
// an error; after an error some of the rows may have been written, and the
// caller finds out by Dump. A table holds only what is ours: Dump never returns,
// and Delete never touches, objects without our ownership mark.
type Table[K comparable, V any] interface {
	// Dump reads every row of ours from the kernel. An error ends the sequence
	// early; the caller must then not treat absent rows as absent.
	Dump() iter.Seq2[K, V]
	// DumpErr is the error that ended the last Dump early, or nil.
	DumpErr() error
	// Put writes rows. ErrFull when there is no room: the rows that were written stay.
	Put(map[K]V) error
	// Delete removes rows.
	Delete([]K) error
}

// sized is a Table that knows how many rows fit; 0 = no limit.
type sized interface{ Size() int }

func sizeOf(table any) int {
	if s, ok := table.(sized); ok {
		return s.Size()
	}
	return 0
}
