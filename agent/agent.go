package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
)

// Agent turns what the clusters say into rows of tables. One goroutine (Run)
// owns all its state; every exported method may be called from any goroutine.
type Agent struct {
	cfg Config
	log *slog.Logger
}

// New makes an agent of the tables. It touches nothing before Run.
func New(cfg Config, tables Tables) (*Agent, error) {
	if cfg.Connector == nil {
		return nil, errors.New("agent without a Connector: nothing to follow")
	}
	return &Agent{cfg: cfg}, nil
}

// Run does everything until ctx ends. The tables are left as they are: an
// agent that stops takes nothing away.
func (a *Agent) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// SetPods says which pods are on this node, all of them. Before the first call
// no pod's row is removed.
func (a *Agent) SetPods(pods []LocalPod) {}

// Notify says that the kernel object behind a table was made anew (a link came
// back, a map was replaced): it is read and repaired at once. "" = all tables.
func (a *Agent) Notify(table string) {}

// Ready reports whether the own cluster is synced and the tables are written.
func (a *Agent) Ready() bool { return false }

// Dump is a table's wanted and actual rows as text; see Text.
func (a *Agent) Dump(table string) (string, error) { return "", nil }

// Handler is the API for the agent's Unix socket.
func (a *Agent) Handler() http.Handler { return http.NotFoundHandler() }

// Collector exports the metrics tombolo_agent_…, read from state on scrape.
func (a *Agent) Collector() prometheus.Collector { return nil }
