package agent

import (
	"bytes"
	"crypto/sha256"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// testSnapshot is a small snapshot file.
func testSnapshot(t testing.TB) ([]byte, clustermesh.Admission) {
	t.Helper()
	dir := t.TempDir()
	v := benchView(t, 2, 3)
	marker, err := clustermesh.Encode(&clustermesh.Cluster{Name: "c2", ID: 2, Incarnation: 9})
	if err != nil {
		t.Fatal(err)
	}
	chunks := make(chan []byte, 1)
	go func() {
		var b []byte
		for key, value := range snapshotRecords(v) {
			b = appendRecord(b, key, value)
		}
		chunks <- b
		close(chunks)
	}()
	h := snapshotHeader{Cluster: "c2", ID: 2, Scope: clustermesh.ScopeExport, Own: "c2", Marker: marker, Written: time.Unix(1, 0)}
	if err := writeSnapshot(dir, h, chunks, make(chan struct{})); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(snapshotFile(dir, "c2", clustermesh.ScopeExport))
	if err != nil {
		t.Fatal(err)
	}
	return raw, clustermesh.Admission{Cluster: "c2", ID: 2, Local: true}
}

func TestSnapshotRoundTrip(t *testing.T) {
	raw, admission := testSnapshot(t)
	u, err := decodeSnapshot(raw, "c2", admission, clustermesh.ScopeExport)
	if err != nil || u.View == nil {
		t.Fatal(err)
	}
	want := benchView(t, 2, 3)
	n := 0
	for ch := range clustermesh.Diff(want, u.View) {
		if ch.Key.Kind != clustermesh.KindCluster {
			t.Errorf("differs: %v", ch)
		}
		n++
	}
	if n > 1 {
		t.Errorf("%d differences", n)
	}
}

func TestSnapshotDamageIsNamed(t *testing.T) {
	raw, admission := testSnapshot(t)
	flip := func(i int) []byte {
		b := bytes.Clone(raw)
		b[i] ^= 1
		return b
	}
	other := admission
	other.ID = 3
	for _, c := range []struct {
		name string
		raw  []byte
		own  string
		adm  clustermesh.Admission
		want string
	}{
		{"empty", nil, "c2", admission, "too few"},
		{"cut off", raw[:len(raw)-7], "c2", admission, "checksum"},
		{"damaged", flip(len(raw) / 2), "c2", admission, "checksum"},
		{"a photo", append([]byte("\x89PNG\r\n\x1a\n"), raw...), "c2", admission, "no snapshot of Tombolo"},
		{"newer", flip(7), "c2", admission, "layout version"},
		{"of another node's cluster", raw, "c1", admission, "node of cluster"},
		{"another ID", raw, "c2", other, "with ID 2; c2 has 3"},
	} {
		u, err := decodeSnapshot(c.raw, c.own, c.adm, clustermesh.ScopeExport)
		if err == nil || !strings.Contains(err.Error(), c.want) || u.View != nil {
			t.Errorf("%s: %v, want something about %q", c.name, err, c.want)
		}
	}
}

// A record that was not admitted is not believed for having been on disk.
func TestSnapshotIsAdmittedAgain(t *testing.T) {
	raw, admission := testSnapshot(t)
	admission.Local = false // and no prefix at all
	u, err := decodeSnapshot(raw, "c2", admission, clustermesh.ScopeExport)
	if err != nil {
		t.Fatal(err)
	}
	for a := range u.View.Addresses() {
		t.Errorf("address %v was believed", a.Name)
	}
}

func FuzzSnapshot(f *testing.F) {
	raw, admission := testSnapshot(f)
	f.Add(raw, true)
	f.Add(raw[:40], false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) > 44 { // get past the checksum
			b = sealSnapshot(b)
		}
		u, err := decodeSnapshot(b, "c2", admission, clustermesh.ScopeExport)
		if err != nil && u.View != nil {
			t.Error("an error and a view")
		}
	})
}

// sealSnapshot gives b the magic and checksum of a whole file.
func sealSnapshot(b []byte) []byte {
	b = bytes.Clone(b)
	copy(b, snapshotMagic[:])
	body := b[:len(b)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(body, sum[:]...)
}
