package kvtest

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/kvstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory(t *testing.T) {
	Run(t, func(t *testing.T) kvstore.Store { return kvstore.NewMemory(kvstore.MemoryOptions{}) })
}

// A replica that Follow keeps supplied is as good as the store it shows.
func TestReplica(t *testing.T) {
	RunPair(t, func(t *testing.T) (writer, reader kvstore.Store) {
		source := kvstore.NewMemory(kvstore.MemoryOptions{})
		return source, follow(t, source)
	}, ReadOnly())
}

// follow makes a replica of source that is ready.
func follow(t *testing.T, source kvstore.Store) *kvstore.Memory {
	replica := kvstore.NewReplica(kvstore.MemoryOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = kvstore.Follow(ctx, kvstore.FollowConfig{Stores: []kvstore.Store{source}, Sink: replica.Sink()})
	}()
	t.Cleanup(func() { cancel(); <-done; replica.Close() })
	<-replica.Ready()
	return replica
}
