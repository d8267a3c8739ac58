package kvstore

import (
	"context"
	"math/rand/v2"
	"time"
)

// Full-jitter backoff: a wait is drawn between nothing and a bound that doubles
// with each failure in a row, so that a thousand readers do not come back in step.
const (
	backoffMin = 250 * time.Millisecond
	backoffMax = 30 * time.Second
)

// backoffWait draws the wait after the given number of failures in a row (1 = first).
func backoffWait(failures int) time.Duration {
	bound := backoffMax
	if failures < 8 {
		bound = min(bound, backoffMin<<max(failures-1, 0))
	}
	return rand.N(bound) + 1
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
