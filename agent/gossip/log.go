package gossip

import (
	"context"
	"log"
	"log/slog"
	"strings"
)

// logger has memberlist's lines among ours. Its warnings are about single members
// and packets, which the status sums up: they are for who looks closely.
func logger(to *slog.Logger) *log.Logger { return log.New(lines{to}, "", 0) }

type lines struct{ to *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	text := strings.TrimSpace(string(b))
	for _, prefix := range []string{"[DEBUG] ", "[INFO] ", "[WARN] ", "[ERR] "} {
		text = strings.TrimPrefix(text, prefix)
	}
	l.to.Log(context.Background(), slog.LevelDebug, strings.TrimPrefix(text, "memberlist: "))
	return len(b), nil
}
