// Package embed runs an etcd inside the process: for a mesh API server that has
// no external one. It has no listener of any kind, neither TCP nor Unix socket:
// calls are Go function calls, so nothing outside the process can reach it.
package embed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/tombolo-mesh/tombolo/kvstore"
	"github.com/tombolo-mesh/tombolo/kvstore/etcd"
)

const (
	// quota bounds the database, in bytes. Beyond it etcd refuses writes.
	quota = 2 << 30

	// retention is how far back revisions can be read. Readers follow the watch
	// cache, which has a history of its own; this one serves the cache itself.
	retention = "10m"

	// progress is how often a quiet watch is told the present revision.
	progress = 5 * time.Second

	// With one member an election has one possible outcome: short ticks only
	// make the start quick and allow leases of one second.
	tick     = 50 * time.Millisecond
	election = 500 * time.Millisecond
)

// ErrLocked: another process uses the data directory.
var ErrLocked = errors.New("data directory is in use")

// Config configures an embedded etcd.
type Config struct {
	// Dir is the data directory. It is made, with mode 0700, if absent.
	Dir string
	// Log receives etcd's warnings and errors as they are, and what it calls
	// information as debug; nil = discard.
	Log *slog.Logger
}

// Server is an etcd in the process.
type Server struct {
	etcd   *embed.Etcd
	store  *etcd.Store
	client *clientv3.Client
	lock   *os.File
	stop   context.CancelFunc // ends the watches, which would outlive the server

	closing sync.Once
}

// Start opens the data directory, or makes a new store in it with a random ID,
// and returns when the store can be written. Writes are fsynced. The caller
// closes the server. A data directory that is used by another process (then the
// error is ErrLocked), damaged, or written by a newer etcd is refused and left
// as it is.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Dir == "" {
		return nil, errors.New("embedded etcd: no data directory given")
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded etcd: make data directory: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{lock: lock}
	if err := s.start(ctx, cfg.Dir, log); err != nil {
		s.Close()
		return nil, fmt.Errorf("embedded etcd in %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, dir string, log *slog.Logger) error {
	if err := checkDatabase(dir); err != nil {
		return err
	}
	fate := newFate(log)
	etcdConfig, err := config(dir, fate)
	if err != nil {
		return err
	}
	s.etcd, err = fate.start(ctx, etcdConfig)
	if err != nil {
		return err
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
	case err := <-s.etcd.Err():
		return fmt.Errorf("did not become ready: %w", err)
	case err := <-fate.died:
		return err
	case <-ctx.Done():
		return fmt.Errorf("did not become ready: %w", ctx.Err())
	}
	fate.running.Store(true)

	lifetime, stop := context.WithCancel(context.Background())
	s.stop = stop
	clients := inProcess(lifetime, s.etcd.Server)
	s.store = etcd.NewStore(clients.kv, clients.watch, clients.lease, "in the process", log)
	s.client = v3client.New(s.etcd.Server)
	return nil
}

// config is etcd's configuration. No URL in it is listened at: etcd wants one
// for its only member's record.
func config(dir string, fate *fate) (*embed.Config, error) {
	token := make([]byte, 16)
	if _, err := rand.Read(token); err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name = "embedded"
	c.Dir = filepath.Join(dir, "etcd")
	c.ListenPeerUrls, c.ListenClientUrls = nil, nil
	nowhere := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = []url.URL{nowhere}, []url.URL{nowhere}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	// The store ID derives from this token: a directory that was wiped must not
	// come back under the ID of what it was.
	c.InitialClusterToken = hex.EncodeToString(token)
	c.TickMs, c.ElectionMs = uint(tick.Milliseconds()), uint(election.Milliseconds())
	c.WatchProgressNotifyInterval = progress
	c.QuotaBackendBytes = quota
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, retention
	c.WarningApplyDuration, c.WarningUnaryRequestDuration = time.Second, 2*time.Second
	c.StrictReconfigCheck = true
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(fate.logger())
	return c, nil
}

// Store is the store on this etcd. It is valid until Close.
func (s *Server) Store() kvstore.Store { return s.store }

// Client is an ordinary etcd client on this etcd, for what kvstore.Store cannot
// do (compaction, status). It is valid until Close.
func (s *Server) Client() *clientv3.Client { return s.client }

// Close stops etcd and releases the data directory. Calls in progress fail.
func (s *Server) Close() {
	s.closing.Do(func() {
		if s.stop != nil {
			s.stop()
		}
		if s.client != nil {
			s.client.Close() //nolint:errcheck // it has no connection
		}
		if s.etcd != nil {
			s.etcd.Close()
		}
		s.lock.Close() // releases it
	})
}
