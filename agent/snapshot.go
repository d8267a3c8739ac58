package agent

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// A snapshot file holds what one cluster said in one scope:
//
//	magic      8 bytes, "TMBSNAP" and the version of the layout
//	header     4 bytes length, little endian; JSON
//	records    zstd of: uvarint length, key, uvarint length, value; …
//	checksum   SHA-256 of everything before
//
// It is written aside and renamed into place, so that a file is whole or it is
// damaged by something else. Records are as in the store, and are admitted again
// when they are read.
var snapshotMagic = [8]byte{'T', 'M', 'B', 'S', 'N', 'A', 'P', 1}

const (
	maxSnapshotHeader = 256 << 10
	maxSnapshotFile   = 1 << 30
	maxSnapshotKey    = 4 << 10
)

// snapshotHeader says whose records follow.
type snapshotHeader struct {
	Cluster string            `json:"cluster"`
	ID      clustermesh.ID    `json:"id"`
	Scope   clustermesh.Scope `json:"scope"`
	Own     string            `json:"own"`    // the cluster of the node that wrote it
	Marker  []byte            `json:"marker"` // the cluster record
	Written time.Time         `json:"written"`
}

func snapshotFile(dir, cluster string, scope clustermesh.Scope) string {
	return filepath.Join(dir, cluster+"."+string(scope)+".snapshot")
}

// snapshotRecords are the records of a view as the store would hold them,
// without the cluster record. The view may change while they are read.
func snapshotRecords(v *clustermesh.View) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		emit := func(r clustermesh.Record) bool {
			value, err := clustermesh.Encode(r)
			if err != nil {
				return true // it was decoded once; one record less is no reason to have none
			}
			return yield(clustermesh.KeyOf(v.Scope(), v.Name(), r).String(), value)
		}
		for r := range v.Nodes() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Services() {
			if !emit(r) {
				return
			}
		}
		for r := range v.AllSlices() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Addresses() {
			if !emit(&r) {
				return
			}
		}
		for r := range v.Identities() {
			if !emit(&r) {
				return
			}
		}
		for r := range v.Peers() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Drains() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Workloads() {
			if !emit(r) {
				return
			}
		}
		for r := range v.Policies() {
			if !emit(r) {
				return
			}
		}
		for r := range v.ClusterPolicies() {
			if !emit(r) {
				return
			}
		}
	}
}

// appendRecord adds one record to a chunk of the file's plain content.
func appendRecord(b []byte, key string, value []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// writeSnapshot writes a file from chunks of plain content, until the channel
// closes; ok false = abandoned, the old file stays.
func writeSnapshot(dir string, h snapshotHeader, chunks <-chan []byte, abandoned <-chan struct{}) (err error) {
	defer func() {
		for range chunks { // never leave the sender behind
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, ".snapshot-*")
	if err != nil {
		return err
	}
	defer func() {
		file.Close()
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	out := bufio.NewWriterSize(file, 64<<10)
	sum := sha256.New()
	if err := writeBody(io.MultiWriter(out, sum), h, chunks); err != nil {
		return err
	}
	select {
	case <-abandoned:
		return errAbandoned
	default:
	}
	if _, err := out.Write(sum.Sum(nil)); err != nil {
		return err
	}
	if err := errors.Join(out.Flush(), file.Sync()); err != nil {
		return err
	}
	return os.Rename(file.Name(), snapshotFile(dir, h.Cluster, h.Scope))
}

var errAbandoned = errors.New("abandoned")

func writeBody(w io.Writer, h snapshotHeader, chunks <-chan []byte) error {
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(head)))
	for _, part := range [][]byte{snapshotMagic[:], size, head} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	packer, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(512<<10), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	for chunk := range chunks {
		if _, err := packer.Write(chunk); err != nil {
			packer.Close()
			return err
		}
	}
	return packer.Close()
}
