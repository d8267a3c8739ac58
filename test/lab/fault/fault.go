// Package fault holds the BPF program that loses and duplicates packets in the
// lab's underlay.
package fault

//go:generate ./gen.sh
