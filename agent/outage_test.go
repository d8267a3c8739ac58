package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/kvstore"
)

// logbook counts log lines of level Info and above, by their text.
type logbook struct {
	mu    sync.Mutex
	lines map[string]int
}

func (l *logbook) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l *logbook) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *logbook) WithGroup(string) slog.Handler                    { return l }
func (l *logbook) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines == nil {
		l.lines = map[string]int{}
	}
	l.lines[r.Message]++
	return nil
}

func (l *logbook) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines[text]
}

func (l *logbook) total() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.lines {
		n += c
	}
	return n
}

func (w *world) status() (s agent.Status) {
	w.t.Helper()
	code, body := w.get("/v1/status")
	if err := json.Unmarshal([]byte(body), &s); code != 200 || err != nil {
		w.t.Fatalf("%d, %v: %s", code, err, body)
	}
	return s
}

func (w *world) cluster(name string) agent.ClusterStatus {
	w.t.Helper()
	for _, c := range w.status().Clusters {
		if c.Name == name {
			return c
		}
	}
	w.t.Fatalf("no cluster %s in the status", name)
	return agent.ClusterStatus{}
}

// unplugged is a Connector that fails while err is set.
type unplugged struct {
	agent.Connector
	mu  sync.Mutex
	err error
}

func (u *unplugged) set(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.err = err
}

func (u *unplugged) Stores(ctx context.Context, cluster string, peer *clustermesh.Peer) ([]kvstore.Store, func(), error) {
	u.mu.Lock()
	err := u.err
	u.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	return u.Connector.Stores(ctx, cluster, peer)
}

// A tunnel that is dead for ten minutes fails a read every 200 ms.
func TestRepeatedFailuresAreCoalescedInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, book := newWorld(t), &logbook{}
		peers := agent.NewFaulty(w.tables.Peers, agent.NoFaults)
		w.tables.Peers, w.cfg.Log, w.cfg.Resync = peers, slog.New(book), 5*time.Second
		w.start()
		defer func() { w.stop() }()
		peers.SetSchedule(func(op agent.FaultOp, _, _ int) agent.Fault {
			if op == agent.OpDump {
				return agent.Fault{Err: agent.ErrInjected}
			}
			return agent.Fault{}
		})
		time.Sleep(10 * time.Minute)
		if n := peers.Faults(); n < 1000 {
			t.Errorf("only %d reads failed: this test proves nothing", n)
		}
		first, again := book.count("cannot read a table; trying again"), book.count("cannot read a table; trying again, still")
		if first != 1 || again < 17 || again > 20 {
			t.Errorf("%d lines, then %d more in ten minutes", first, again)
		}
		if p := w.status().Problems; len(p) != 1 || !strings.Contains(p[0].What, "table peers cannot be read") {
			t.Errorf("problems: %+v", p)
		}
		peers.SetSchedule(agent.NoFaults)
		time.Sleep(time.Minute)
		if n := book.count("a table can be read again"); n != 1 || len(w.status().Problems) > 0 {
			t.Errorf("%d lines about the end, problems %+v", n, w.status().Problems)
		}
	})
}

func TestStaleSinceStandsStillWithoutAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		plug := &unplugged{Connector: w.mesh}
		w.cfg.Connector = plug
		w.start()
		defer func() { w.stop() }()
		if c := w.cluster("gcp"); c.StaleSince != nil || !c.Connected {
			t.Fatalf("connected: %+v", c)
		}
		time.Sleep(time.Minute)
		lost := time.Now()
		w.mesh.Cut("gcp", errors.New("dark"))
		same := func(when string) {
			t.Helper()
			if c := w.cluster("gcp"); c.StaleSince == nil || c.StaleSince.Sub(lost).Abs() > time.Second || c.LastError == "" {
				t.Errorf("%s: stale since %v, want %v; %q", when, c.StaleSince, lost, c.LastError)
			}
		}
		for range 20 {
			time.Sleep(7 * time.Minute)
			same("after retries")
		}
		// The peer's record changes: it is followed anew, and is no fresher for it.
		peer := gcp.Peer()
		peer.MaxKeys = 12345
		w.mesh.Put(t, "aws", local, peer)
		time.Sleep(time.Hour)
		same("followed anew")
		plug.set(errors.New("no certificate"))
		peer.MaxKeys++
		w.mesh.Put(t, "aws", local, peer)
		time.Sleep(time.Hour)
		same("the connector fails")
		plug.set(nil)
		w.mesh.Cut("gcp", nil)
		time.Sleep(5 * time.Minute)
		if c := w.cluster("gcp"); c.StaleSince != nil || !c.Connected || !c.Synced {
			t.Errorf("back: %+v", c)
		}
	})
}

// Half a day without a connection, of whichever kind, costs no memory and few
// words, and all is well afterwards.
func TestOutageOfHoursDoesNotGrow(t *testing.T) {
	for name, fail := range map[string]func(w *world, plug *unplugged, err error){
		"the connector fails": func(_ *world, plug *unplugged, err error) { plug.set(err) },
		"nobody answers": func(w *world, _ *unplugged, err error) {
			w.mesh.Cut("aws", err)
			w.mesh.Cut("gcp", err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, book := newWorld(t), &logbook{}
				plug := &unplugged{Connector: w.mesh}
				w.cfg.Connector, w.cfg.Log, w.cfg.Resync = plug, slog.New(book), 0
				w.cfg.SnapshotDir = t.TempDir()
				fail(w, plug, errors.New("dark"))
				w.start()
				defer func() { w.stop() }()
				measure := func() (goroutines int, heap uint64, lines int) {
					synctest.Wait()
					runtime.GC()
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					return runtime.NumGoroutine(), m.HeapAlloc, book.total()
				}
				time.Sleep(10 * time.Minute)
				goroutines, heap, lines := measure()
				time.Sleep(12 * time.Hour)
				goroutines2, heap2, lines2 := measure()
				if goroutines2 > goroutines+2 { // timers of retries come and go
					t.Errorf("%d goroutines, then %d", goroutines, goroutines2)
				}
				if heap2 > heap+1<<20 {
					t.Errorf("%d bytes of heap, then %d", heap, heap2)
				}
				if perHour := (lines2 - lines) / 12; perHour > 2*120+5 {
					t.Errorf("%d log lines an hour", perHour)
				}
				fail(w, plug, nil)
				time.Sleep(5 * time.Minute)
				if s := w.status(); !s.Ready || len(s.Problems) > 0 {
					t.Errorf("afterwards: ready %v, %+v", s.Ready, s.Problems)
				}
			})
		})
	}
}

func TestRefusedRecordsAreCountedExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, book := newWorld(t), &logbook{}
		w.cfg.Log = slog.New(book)
		var bad []clustermesh.Record
		for i := range 230 {
			bad = append(bad, aws.Address(1+i/200, 1+i%200, 5)) // of a cluster that it is not
		}
		w.mesh.Put(t, "gcp", export, bad...) // in the first list
		w.start()
		defer func() { w.stop() }()
		check := func(want uint64) {
			t.Helper()
			synctest.Wait()
			var got uint64
			c := w.cluster("gcp")
			for _, n := range c.Refused {
				got += n
			}
			if got != want {
				t.Errorf("%d records refused, want %d: %v", got, want, c.Refused)
			}
		}
		check(230)
		w.mesh.Put(t, "gcp", export, bad[:130]...) // as changes
		check(360)
		w.mesh.Cut("gcp", errors.New("dark"))
		time.Sleep(time.Minute)
		w.mesh.Cut("gcp", nil)
		time.Sleep(time.Minute)
		check(360) // the watch was resumed
		if n := book.count("record refused; the last good one stays"); n > 20 {
			t.Errorf("%d log lines", n)
		}
	})
}
