package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

// leaderConfig says what is led.
type leaderConfig struct {
	Store kvstore.Store
	Key   string
	// Holder names this replica, the same after a restart, and no other process
	// while it runs: a key of an earlier life is taken over at once.
	Holder string
	TTL    time.Duration
	Log    *slog.Logger
}

// leader holds the leader key: a key on a lease whose create revision is the
// fencing token of every commit made under it. A replica that was stopped past
// its lease finds the key gone or created anew, and its commits fail. In another
// store, or one that was restored, the key of another's term may have the same
// revision: so each term has a key of its own beside it, whose name nobody else
// draws.
type leader struct {
	cfg    leaderConfig
	leads  atomic.Bool
	mu     sync.Mutex
	holder string        // who held the key when it was last looked at
	err    error         // of the last attempt
	again  chan struct{} // buffered by one: the present term is to end
}

// errLeaseOver: the lease may have expired; nothing is to be written any more.
var errLeaseOver = errors.New("the lease of the leader key may be over")

// fence are the conditions of every commit of one term.
type fence struct {
	key      string
	term     string // the key of this term
	rev      int64  // that created both
	mu       sync.Mutex
	deadline time.Time // the lease lives at least until then, as of the last renewal
}

// ops returns the conditions; an error when the lease may be over by this
// process's own clock. It is the key's revision that decides: a process cannot
// know whether it is being stopped just after it looked at a clock.
func (f *fence) ops() ([]kvstore.Op, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !time.Now().Before(f.deadline) {
		return nil, errLeaseOver
	}
	return []kvstore.Op{kvstore.IfCreateRevision(f.key, f.rev), kvstore.IfCreateRevision(f.term, f.rev)}, nil
}

func (f *fence) renewed(until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deadline = until
}

func newLeader(cfg leaderConfig) *leader { return &leader{cfg: cfg, again: make(chan struct{}, 1)} }

// restart ends the present term, if there is one; the next judges the store anew.
func (l *leader) restart() {
	if l.leads.Load() {
		select {
		case l.again <- struct{}{}:
		default:
		}
	}
}

// status says whether this replica leads, who does, and what went wrong last.
func (l *leader) status() (leads bool, holder string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leads.Load(), l.holder, l.err
}

func (l *leader) note(holder string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holder, l.err = holder, err
}

// run competes for the key until ctx ends, and calls term whenever it has it.
// term's context ends when the lease is lost; when term returns the key is given
// up.
func (l *leader) run(ctx context.Context, term func(context.Context, *fence) error) {
	for ctx.Err() == nil {
		lease, f, err := l.campaign(ctx)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, kvstore.ErrConflict) {
				l.note("", err)
				l.cfg.Log.Warn("leader key: the store does not answer", "err", err)
			}
			pause(ctx, l.cfg.TTL/10)
			continue
		}
		l.note(l.cfg.Holder, nil)
		l.cfg.Log.Info("this replica leads now", "holder", l.cfg.Holder, "revision", f.rev)
		began := time.Now()
		l.hold(ctx, lease, f, term)
		if time.Since(began) < time.Second {
			pause(ctx, time.Second) // a term that cannot begin is not tried in a hurry
		}
		l.cfg.Log.Info("this replica leads no longer", "holder", l.cfg.Holder)
	}
}

// campaign tries once to get the key.
func (l *leader) campaign(ctx context.Context) (kvstore.Lease, *fence, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL)
	defer cancel()
	held, err := getKey(ctx, l.cfg.Store, l.cfg.Key)
	if err != nil {
		return nil, nil, err
	}
	if held.Key != "" {
		if string(held.Value) != l.cfg.Holder {
			l.note(string(held.Value), nil)
			return nil, nil, kvstore.ErrConflict
		}
		// An earlier life of this replica. Its key dies first, so that the new one
		// has a create revision of its own: what the old life may still have under
		// way is fenced off.
		if _, err := l.cfg.Store.Commit(ctx, kvstore.IfModRevision(l.cfg.Key, held.ModRevision), kvstore.Delete(l.cfg.Key)); err != nil {
			return nil, nil, err
		}
	}
	asked := time.Now()
	lease, err := l.cfg.Store.Grant(ctx, l.cfg.TTL)
	if err != nil {
		return nil, nil, err
	}
	term := fmt.Sprintf("%s/%016x", l.cfg.Key, newIncarnation())
	at, err := l.cfg.Store.Commit(ctx, kvstore.IfModRevision(l.cfg.Key, 0), kvstore.Put(l.cfg.Key, []byte(l.cfg.Holder), lease.ID()), kvstore.Put(term, nil, lease.ID()))
	if err != nil {
		l.revoke(lease)
		return nil, nil, err
	}
	return lease, &fence{key: l.cfg.Key, term: term, rev: at.Revision, deadline: asked.Add(l.cfg.TTL)}, nil
}

// hold renews the lease while term runs, and ends term when it cannot.
func (l *leader) hold(ctx context.Context, lease kvstore.Lease, f *fence, term func(context.Context, *fence) error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case <-l.again: // meant for an earlier term
	default:
	}
	l.leads.Store(true)
	defer l.leads.Store(false)
	ended := make(chan error, 1)
	go func() { ended <- term(ctx, f) }()
	renew := time.NewTicker(l.cfg.TTL / 4)
	defer renew.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil && ctx.Err() == nil {
				l.cfg.Log.Warn("term ended", "err", err)
			}
			l.revoke(lease)
			return
		case <-l.again:
			l.cfg.Log.Warn("the store was restored under this term; a new one begins")
			cancel()
			<-ended
			l.revoke(lease)
			return
		case <-renew.C:
			if err := l.renew(ctx, lease, f); err != nil {
				l.cfg.Log.Warn("leader key not renewed", "err", err)
				l.note("", fmt.Errorf("leader key not renewed: %w", err))
				cancel()
				<-ended
				l.revoke(lease)
				return
			}
		}
	}
}

// renew keeps the lease alive. Failures are borne until the lease may be over.
func (l *leader) renew(ctx context.Context, lease kvstore.Lease, f *fence) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL/4)
	defer cancel()
	asked := time.Now()
	left, err := lease.KeepAlive(ctx)
	if err == nil {
		f.renewed(asked.Add(min(left, l.cfg.TTL)))
		return nil
	}
	if _, over := f.ops(); over != nil || errors.Is(err, kvstore.ErrLeaseNotFound) {
		return err
	}
	return nil
}

// revoke gives the key up, so that another replica need not wait.
func (l *leader) revoke(lease kvstore.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := lease.Revoke(ctx); err != nil && !errors.Is(err, kvstore.ErrLeaseNotFound) {
		l.cfg.Log.Info("leader key not given up; it goes with its lease", "err", err)
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
