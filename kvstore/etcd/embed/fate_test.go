package embed

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// A first start and a second one are quiet: what etcd calls an error while its
// database is new is none.
func TestStartIsQuiet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	for _, which := range []string{"first", "second"} {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		s, err := Start(ctx, Config{Dir: dir, Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelError}))})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s.Store(), kvstore.Put("k", []byte("v"), 0))
		s.Close()
		if out.Len() > 0 {
			t.Errorf("%s start:\n%s", which, out.String())
		}
	}
}

func TestOnlyTheHarmlessErrorIsQuiet(t *testing.T) {
	early := errors.New("cannot detect storage schema version: missing term information")
	for _, c := range []struct {
		message string
		err     error
		level   string
	}{
		{"failed to update storage version", early, "DEBUG"},
		{"failed to update storage version", errors.New("cannot create migration plan: version \"3.8\" is not supported"), "ERROR"},
		{"failed to write", early, "ERROR"},
		{"simple token is not cryptographically signed", nil, "DEBUG"},
	} {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		if err := (slogCore{log: log}).Write(zapcore.Entry{Level: zapcore.ErrorLevel, Message: c.message}, []zapcore.Field{zap.Error(c.err)}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "level="+c.level) {
			t.Errorf("%s: %v:\n%swant %s", c.message, c.err, out.String(), c.level)
		}
	}
}
