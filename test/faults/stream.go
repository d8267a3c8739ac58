package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tombolo-mesh/tombolo/test/lab"
)

// patience of one request: a connection that got no answer by then has failed.
const (
	// patience finds out soon that something is dead.
	patience = 500 * time.Millisecond
	// never is for where nothing is: a lost SYN is sent again after one second and
	// after two more, so that a busy machine is not taken for a lost connection.
	never = 5 * time.Second
)

// streams are new connections at a steady rate, from every node of home: a
// thousand a second from the first, fewer from the others, as the machine that
// measures must not be what is measured.
type streams []*lab.Client

func (m *mesh) streams(ctx context.Context, timeout time.Duration) (streams, error) {
	var all streams
	for i, n := range m.home.Nodes {
		pod, interval := m.client, time.Millisecond
		if i > 0 {
			var err error
			interval = 10 * time.Millisecond
			if pod, err = n.AddPod(ctx, lab.PodSpec{Name: fmt.Sprintf("client-%d", i+1)}); err != nil {
				return nil, err
			}
		}
		c, err := pod.Client("stream", lab.ClientOptions{Target: target, Interval: interval, Timeout: timeout, Mark: mark, Open: true})
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, all.calm(ctx, time.Now())
}

func (s streams) stop() {
	for _, c := range s {
		c.Process.Kill()
	}
}

// calm waits until every stream had no failure for half a second, all of it after
// t, as far as is known: a failure is known when its patience is over.
func (s streams) calm(ctx context.Context, t time.Time) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not within a minute"))
	defer cancel()
	return poll(ctx, "all connections are answered again", func() error {
		for _, c := range s {
			last, _ := lastFailure(c.Since(t), t)
			if last.IsZero() {
				last = t
			}
			if quiet := time.Since(last); quiet < patience+500*time.Millisecond {
				return fmt.Errorf("the last one that failed began %s ago", seconds(quiet))
			}
		}
		return nil
	})
}

// avoided is how long after t the last new connection began that failed, over all
// streams, and how many failed.
func (s streams) avoided(t time.Time) (took time.Duration, failed, all int) {
	for _, c := range s {
		results := c.Since(t)
		last, n := lastFailure(results, t)
		if took = max(took, last.Sub(t)); last.IsZero() {
			took = max(took, 0)
		}
		failed, all = failed+n, all+len(results)
	}
	return took, failed, all
}

// lastFailure is when the last connection began that began after t and failed;
// zero = none did.
func lastFailure(results []lab.Result, t time.Time) (last time.Time, failed int) {
	for _, r := range results {
		if !r.OK() && r.Begin().After(t) {
			failed++
			if r.Begin().After(last) {
				last = r.Begin()
			}
		}
	}
	return last, failed
}

// noneFails is the promise that no request of the clients failed since t, and that
// each of them was answered until now: one that hears nothing has no failure either.
func (s *suite) noneFails(promised string, clients streams, t time.Time) {
	failed, all, first := clients.failures(t)
	silent := 0
	for _, c := range clients {
		if results := c.Since(t); len(results) == 0 || time.Since(results[len(results)-1].End) > time.Second {
			silent++
		}
	}
	detail := fmt.Sprintf("%d of %d in %s", failed, all, seconds(time.Since(t)))
	if failed > 0 {
		detail += ", the first: " + first
	}
	if silent > 0 {
		detail += fmt.Sprintf("; %d of %d clients hear nothing", silent, len(clients))
	}
	s.never(promised, failed+silent, detail)
}

// failures of all streams since t.
func (s streams) failures(t time.Time) (failed, all int, first string) {
	for _, c := range s {
		for _, r := range c.Since(t) {
			if all++; !r.OK() {
				if failed++; first == "" {
					first = r.Err
				}
			}
		}
	}
	return failed, all, first
}
