package embed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// fate is the logger of an embedded etcd, and what becomes of the process when
// etcd gives up: etcd says so by a log entry that is meant to end the process.
// While it starts, the entry becomes the error of Start. Later, when a write to
// its log failed, the process does end: nothing that was acknowledged would be
// kept.
type fate struct {
	log     *slog.Logger
	running atomic.Bool
	died    chan error // the first fatal entry while starting
}

func newFate(log *slog.Logger) *fate { return &fate{log: log, died: make(chan error, 1)} }

// start runs StartEtcd in a goroutine of its own, which a fatal entry ends.
func (f *fate) start(ctx context.Context, cfg *embed.Config) (*embed.Etcd, error) {
	type outcome struct {
		etcd *embed.Etcd
		err  error
	}
	started := make(chan outcome, 1)
	go func() {
		e, err := embed.StartEtcd(cfg)
		started <- outcome{e, err}
	}()
	select {
	case o := <-started:
		if o.err != nil {
			return nil, explain(o.err.Error(), o.err)
		}
		return o.etcd, nil
	case err := <-f.died:
		return nil, err
	case <-ctx.Done():
		go func() { // it must not run on unowned
			if o := <-started; o.etcd != nil {
				o.etcd.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// explain adds what to do to the failures that have a remedy.
func explain(text string, cause error) error {
	hint := ""
	switch {
	case strings.Contains(text, "lower than determined cluster version"), strings.Contains(text, "downgrade"), strings.Contains(text, "is not supported"):
		hint = "the data was written by a newer version: run that version, or restore a backup made by this one"
	case strings.Contains(text, "no space left"):
		hint = "free space on this disk and start again"
	case strings.Contains(text, "permission denied"):
		hint = "the data directory must belong to the user that runs this process"
	default:
		hint = "if the data is damaged, move the directory away: the store is filled again from its sources, and readers keep what they have until it is"
	}
	if cause == nil {
		cause = errors.New(text)
	}
	return fmt.Errorf("cannot open the store: %w (%s)", cause, hint)
}

func (f *fate) logger() *zap.Logger {
	hook := fatalHook{f}
	return zap.New(slogCore{log: f.log}, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
}

type fatalHook struct{ f *fate }

// OnWrite must not return: etcd relies on it.
func (h fatalHook) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	text := entry.Message
	enc := zapcore.NewMapObjectEncoder()
	for _, field := range fields {
		field.AddTo(enc)
	}
	for _, name := range []string{"error", "path", "wal-path", "current-server-version", "determined-cluster-version"} {
		if v, ok := enc.Fields[name]; ok {
			text += fmt.Sprintf("; %s: %v", name, v)
		}
	}
	if h.f.running.Load() {
		h.f.log.Error("the embedded etcd gave up; ending the process", "reason", text)
		os.Exit(1)
	}
	select {
	case h.f.died <- explain(text, nil):
	default:
	}
	runtime.Goexit()
}

// slogCore writes zap's entries to slog.
type slogCore struct {
	log   *slog.Logger
	attrs []slog.Attr
}

// level maps etcd's levels: its information is our debug.
func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.InfoLevel:
		return slog.LevelDebug
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

func (c slogCore) Enabled(l zapcore.Level) bool {
	// Entries that end the process must always pass, or their hook would not run.
	return l >= zapcore.DPanicLevel || c.log.Enabled(context.Background(), level(l)) && l > zapcore.DebugLevel
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{log: c.log, attrs: append(c.attrs[:len(c.attrs):len(c.attrs)], attrsOf(fields)...)}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	l := level(e.Level)
	if storageVersionLater(e.Message, fields) || aboutListeners[e.Message] {
		l = slog.LevelDebug
	}
	c.log.LogAttrs(context.Background(), l, "etcd: "+e.Message, append(c.attrs[:len(c.attrs):len(c.attrs)], attrsOf(fields)...)...)
	return nil
}

// aboutListeners are warnings that etcd gives at every start and that mean
// nothing to one that nobody outside the process can reach.
var aboutListeners = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
}

// storageVersionLater recognizes an error of etcd's that is none: on the first
// start it notes the version of its storage as soon as the cluster has one, which
// is before its first batch commit (100 ms at most) has put raft's term into the
// database, and the term is how it tells an old database from an empty one. It
// tries again every 4 s, by then with success. The version noted serves upgrades
// and downgrades of etcd, not the data. Every other cause stays loud.
func storageVersionLater(message string, fields []zapcore.Field) bool {
	if message != "failed to update storage version" && message != "Failed to detect schema version" {
		return false
	}
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && strings.Contains(err.Error(), "missing term information") {
			return true
		}
	}
	return false
}

func (slogCore) Sync() error { return nil }

func attrsOf(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
		attrs = append(attrs, slog.Any(k, enc.Fields[k]))
	}
	return attrs
}
