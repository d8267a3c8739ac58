package kvstore

import (
	"context"
	"errors"
)

var errPending = errors.New("kvstore: not written yet")

// Follow keeps Sink supplied until ctx ends, and returns its error.
func Follow(ctx context.Context, c FollowConfig) error { return errPending }

// Publisher keeps wanted keys in a store.
type Publisher struct{}

// NewPublisher makes one; Run starts it.
func NewPublisher(c PublishConfig) *Publisher { return &Publisher{} }

// Set: key should be value. It never blocks on the store.
func (p *Publisher) Set(key string, value []byte) {}

// Delete: key should not exist. Not guarded.
func (p *Publisher) Delete(key string) {}

// Relist begins a complete list: what is not Set again before Listed is no longer wanted (guarded).
func (p *Publisher) Relist() {}

// Listed ends a complete list: sweep, marker.
func (p *Publisher) Listed() {}

// Run publishes until ctx ends or the fence fails. It may be called again.
func (p *Publisher) Run(ctx context.Context) error { return errPending }

// Held are the sweeps held by the guard, by kind.
func (p *Publisher) Held() []Held { return nil }

// Confirm releases a held sweep and returns how many keys it will delete.
func (p *Publisher) Confirm(kind string) int { return 0 }

// Refused are the keys whose values were not taken, by key.
func (p *Publisher) Refused() []Refusal { return nil }

// Idle: everything wanted is in the store.
func (p *Publisher) Idle() bool { return false }

// WaitIdle waits for Idle.
func (p *Publisher) WaitIdle(ctx context.Context) error { return errPending }
