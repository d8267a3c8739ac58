package agent

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// errNoSnapshot: there is no file, which is nothing to complain about.
var errNoSnapshot = errors.New("no snapshot")

// readSnapshot reads what a cluster said last in a scope. Every record passes
// admission as if it came from the store. The error says what is wrong with the
// file; none of a damaged file is used.
func readSnapshot(dir, own string, admission clustermesh.Admission, scope clustermesh.Scope) (u clustermesh.Update, err error) {
	name := snapshotFile(dir, admission.Cluster, scope)
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return u, errNoSnapshot
	}
	if err != nil {
		return u, err
	}
	if info.Size() > maxSnapshotFile {
		return u, fmt.Errorf("%d bytes are too many for a snapshot", info.Size())
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return u, err
	}
	return decodeSnapshot(raw, own, admission, scope)
}

func decodeSnapshot(raw []byte, own string, admission clustermesh.Admission, scope clustermesh.Scope) (u clustermesh.Update, err error) {
	h, packed, err := openSnapshot(raw)
	if err != nil {
		return u, err
	}
	switch {
	case h.Own != own:
		return u, fmt.Errorf("it was written by a node of cluster %q, this node is of cluster %q", h.Own, own)
	case h.Cluster != admission.Cluster || h.Scope != scope:
		return u, fmt.Errorf("it holds scope %q of cluster %q", h.Scope, h.Cluster)
	case h.ID != admission.ID:
		return u, fmt.Errorf("it is of a cluster with ID %d; %s has %d", h.ID, admission.Cluster, admission.ID)
	}
	reader := clustermesh.NewReader(clustermesh.ReaderConfig{
		Admission: admission, Scope: scope, Out: func(got clustermesh.Update) { u = got },
	})
	at := kvstore.Position{StoreID: 1, Revision: 1}
	if err := reader.Begin(at, h.Marker); err != nil {
		return clustermesh.Update{}, err
	}
	if err := feed(packed, func(events []kvstore.Event) error { return reader.Apply(at, events) }); err != nil {
		return clustermesh.Update{}, err
	}
	reader.Synced(at)
	u.Refused, u.RefusedTotal = nil, 0
	return u, nil
}

// openSnapshot checks a file as a whole and returns its header and records.
func openSnapshot(raw []byte) (h snapshotHeader, packed []byte, err error) {
	least := len(snapshotMagic) + 4 + sha256.Size
	if len(raw) < least {
		return h, nil, fmt.Errorf("%d bytes are too few for a snapshot: it was cut off", len(raw))
	}
	if !bytes.Equal(raw[:7], snapshotMagic[:7]) {
		return h, nil, errors.New("it is no snapshot of Tombolo")
	}
	if raw[7] != snapshotMagic[7] {
		return h, nil, fmt.Errorf("it has layout version %d; this agent reads version %d", raw[7], snapshotMagic[7])
	}
	body, sum := raw[:len(raw)-sha256.Size], raw[len(raw)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return h, nil, errors.New("its checksum is wrong: it was cut off or damaged")
	}
	size := binary.LittleEndian.Uint32(body[8:])
	rest := body[12:]
	if size > maxSnapshotHeader || int(size) > len(rest) {
		return h, nil, errors.New("its header is longer than the file")
	}
	if err := json.Unmarshal(rest[:size], &h); err != nil {
		return h, nil, fmt.Errorf("its header: %w", err)
	}
	return h, rest[size:], nil
}

// feed unpacks records and hands them over in chunks.
func feed(packed []byte, apply func([]kvstore.Event) error) error {
	unpacker, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer unpacker.Close()
	in := bufio.NewReaderSize(io.LimitReader(unpacker, maxSnapshotFile), 64<<10)
	events := make([]kvstore.Event, 0, 1000)
	for {
		key, err := readBytes(in, maxSnapshotKey)
		if errors.Is(err, io.EOF) {
			return apply(events)
		}
		if err == nil && len(key) == 0 {
			err = errors.New("an entry without a key")
		}
		if err != nil {
			return fmt.Errorf("its records: %w", err)
		}
		value, err := readBytes(in, kvstore.MaxValue)
		if err != nil {
			return fmt.Errorf("its records: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		events = append(events, kvstore.Event{KV: kvstore.KV{Key: string(key), Value: value, ModRevision: 1, CreateRevision: 1}})
		if len(events) == cap(events) {
			if err := apply(events); err != nil {
				return err
			}
			events = make([]kvstore.Event, 0, 1000)
		}
	}
}

func readBytes(in *bufio.Reader, limit uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("an entry of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

// setAside renames a file that cannot be used, so that it can be looked at and
// is not tried again. It returns the new name.
func setAside(dir, cluster string, scope clustermesh.Scope) string {
	name := snapshotFile(dir, cluster, scope)
	aside := name + ".bad"
	if err := os.Rename(name, aside); err != nil {
		os.Remove(name)
		return name
	}
	return aside
}
