package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// journal notes what is written to the table of addresses, in order.
type journal struct {
	agent.Table[agent.Addr, agent.IPCacheRow]
	mu    sync.Mutex
	lines []string
}

func (j *journal) Put(rows map[agent.Addr]agent.IPCacheRow) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for k, v := range rows {
		j.lines = append(j.lines, fmt.Sprintf("put %s %d", k.IP(), clustermesh.Identity(v.Identity).Number()))
	}
	return j.Table.Put(rows)
}

func (j *journal) Delete(keys []agent.Addr) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, k := range keys {
		j.lines = append(j.lines, "delete "+k.IP().String())
	}
	return j.Table.Delete(keys)
}

func (j *journal) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	return lines
}

// A cluster was set up anew and gave its identities other meanings. A row whose
// identity no longer means what it did leaves before any new row enters, so that
// at no time a packet is taken for what it is not; rows that mean the same stay.
func TestNewIncarnationChangesWhatIdentitiesMean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		j := &journal{Table: w.tables.IPs}
		w.tables.IPs = j
		w.mesh.Put(t, "gcp", export,
			gcp.Identity(6), gcp.Identity(7),
			gcp.Address(1, 11, 6), gcp.Address(1, 12, 7), gcp.Address(1, 13, 6), gcp.Address(1, 14, 7))
		w.start()
		defer func() { w.stop() }()
		time.Sleep(time.Minute)
		j.take()

		// In the new life: 5 means what 6 did and the other way round, 7 is the
		// same; pod 13 has the number it had under another meaning, pod 14 left.
		five, six := gcp.Identity(5), gcp.Identity(6)
		five.Labels, six.Labels = six.Labels, five.Labels
		anew := kvstore.NewMemory(kvstore.MemoryOptions{StoreID: 0xb007})
		w.mesh.SetStore("gcp", anew)
		w.mesh.Put(t, "gcp", export, gcp.Node(1), gcp.Node(2), five, six, gcp.Identity(7), gcp.Identity(8),
			gcp.Address(1, 10, 6), gcp.Address(2, 10, 6), gcp.Address(1, 11, 5), gcp.Address(1, 12, 7), gcp.Address(1, 13, 6), gcp.Address(1, 15, 8),
			gcp.Service("checkout", 1), gcp.Slice("checkout", [2]int{1, 10}, [2]int{2, 10}), gcp.Cluster(999))
		time.Sleep(time.Minute)

		lines := j.take()
		of := func(addr string) (ops []string) {
			for _, l := range lines {
				if words := strings.Fields(l); words[1] == addr {
					ops = append(ops, l)
				}
			}
			return ops
		}
		for addr, want := range map[string][]string{
			"10.2.1.10": {"delete 10.2.1.10", "put 10.2.1.10 6"},
			"10.2.2.10": {"delete 10.2.2.10", "put 10.2.2.10 6"},
			"10.2.1.11": {"delete 10.2.1.11", "put 10.2.1.11 5"},
			"10.2.1.12": nil, // nothing changed for it
			"10.2.1.13": {"delete 10.2.1.13", "put 10.2.1.13 6"},
			"10.2.1.14": {"delete 10.2.1.14"},
			"10.2.1.15": {"put 10.2.1.15 8"},
		} {
			if got := of(addr); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", addr, got, want)
			}
		}
		// Every row that leaves for its meaning is gone before the first one enters.
		firstPut := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "put") })
		for i, l := range lines {
			if i > firstPut && strings.HasPrefix(l, "delete") && !strings.HasSuffix(l, "10.2.1.14") {
				t.Errorf("%q after %q", l, lines[firstPut])
			}
		}
		if got := w.cluster("gcp").Incarnation; got != "3e7" {
			t.Errorf("incarnation %s", got)
		}
	})
}
