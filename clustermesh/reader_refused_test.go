package clustermesh

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// linesOf counts log lines of level Warn and above.
type linesOf struct{ n *int }

func (l linesOf) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (l linesOf) Handle(context.Context, slog.Record) error        { *l.n++; return nil }
func (l linesOf) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l linesOf) WithGroup(string) slog.Handler                    { return l }

// Whatever becomes of a list, every refusal is counted once in the Updates and
// in the Reader's own counters, by class; the log has few lines of them.
func TestRefusalsAreCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := 0
		told := map[RefusalClass]uint64{}
		total := 0
		a := Admission{Cluster: "aws", ID: 1, PodPrefixes: anywhere}
		r := NewReader(ReaderConfig{Admission: a, Log: slog.New(linesOf{&lines}), Out: func(u Update) {
			for class, n := range u.RefusedByClass {
				told[class] += n
			}
			total += u.RefusedTotal
		}})
		marker, err := Encode(&Cluster{Name: "aws", ID: 1, Incarnation: 7})
		if err != nil {
			t.Fatal(err)
		}
		unknown := kvstore.Event{KV: kvstore.KV{Key: r.Prefix() + "color/red"}}
		garbage := kvstore.Event{KV: kvstore.KV{Key: r.Prefix() + "node/n1", Value: []byte("garbage")}}
		apply := func(keys, values int) {
			t.Helper()
			var events []kvstore.Event
			for range keys {
				events = append(events, unknown)
			}
			for range values {
				events = append(events, garbage)
			}
			if err := r.Apply(kvstore.Position{}, events); err != nil {
				t.Fatal(err)
			}
		}
		begin := func() {
			t.Helper()
			if err := r.Begin(kvstore.Position{}, marker); err != nil {
				t.Fatal(err)
			}
		}
		begin()
		apply(300, 20)
		r.Lost(nil) // a broken list
		begin()
		apply(5, 0)
		begin() // one that was given up without a word
		apply(7, 300)
		r.Synced(kvstore.Position{})
		apply(150, 1)
		for class, want := range map[RefusalClass]uint64{RefusedKey: 462, RefusedValue: 321} {
			if told[class] != want || r.RefusedCounts()[class] != want {
				t.Errorf("%s: told of %d, counted %d, want %d", class, told[class], r.RefusedCounts()[class], want)
			}
		}
		if total != 783 {
			t.Errorf("%d in all", total)
		}
		if lines > refusalsSaid {
			t.Errorf("%d lines at once", lines)
		}
		time.Sleep(refusalsEvery)
		apply(1, 0)
		if lines != refusalsSaid+2 { // how many there were, and the new one
			t.Errorf("%d lines later", lines)
		}
	})
}
