package etcd

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// Source is what a Server reads: a *kvstore.Memory.
type Source interface {
	kvstore.Store
	// Position is the present one; zero while nothing has been synced.
	Position() kvstore.Position
}

// Access is what one caller may do.
type Access struct {
	// Name identifies the caller in budgets, Readers and CloseClient: the
	// cluster or node its certificate names. Never "".
	Name string
	// Prefixes the caller may read. A request must lie wholly within one of
	// them; none = nothing may be read. "" = everything.
	Prefixes []string
	Budget   Budget
	// Group is whom the caller shares GroupBudget with, beside its own Budget;
	// "" = nobody. Who can have names made, as a cluster's CA can, gets no more
	// by having many. A name never changes its group.
	Group       string
	GroupBudget Budget
}

// Budget bounds what one name or group may use, over all its connections. 0 = no
// limit.
type Budget struct {
	Watches           int   // watches at a time
	RequestsPerSecond int   // requests, also those on watch streams; bursts of twice as many
	BytesPerSecond    int64 // bytes of answers, before compression; answers are delayed, not refused; bursts of ten seconds' worth
}

// ServerConfig configures a Server.
type ServerConfig struct {
	// Authorize says what the caller of ctx may read. It is asked for every
	// call and must not block for long. An error refuses the call; a gRPC
	// status is passed on as it is.
	Authorize func(ctx context.Context) (Access, error)
	// Log receives refusals; nil = discard.
	Log *slog.Logger
}

// Server is the read half of the etcd v3 API. See NewServer.
type Server struct {
	store     Source
	authorize func(context.Context) (Access, error)
	log       *slog.Logger

	mu      sync.Mutex
	clients map[string]*client // by Access.Name
	groups  map[string]*client // by Access.Group; only budget and counts are used
	swept   time.Time          // when idle ones were looked for last
}

// NewServer serves Range, RangeStream, Watch and Status out of store, filtered
// by what cfg.Authorize allows. Everything else of the etcd API is refused.
// It panics without cfg.Authorize: there is no default that is safe.
func NewServer(store Source, cfg ServerConfig) *Server {
	if cfg.Authorize == nil {
		panic("etcd.NewServer: no Authorize given")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{store: store, authorize: cfg.Authorize, log: cfg.Log, clients: map[string]*client{}, groups: map[string]*client{}}
}

// Register adds the etcd services to g, which must have been made with
// ServerOptions: their codec sends answers that are encoded already.
func (s *Server) Register(g *grpc.Server) {
	for _, desc := range s.services() {
		g.RegisterService(desc, s)
	}
}
