package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Load is a pod that keeps connections open and makes new ones all the time.
type Load struct {
	pod    *Pod
	target string
}

// Total is what a load has seen since its start: kept connections lost, new ones
// that did not come about.
type Total struct {
	At                             int64
	Requests, Lost, Dials, Refused int64
	WorstMillis                    int64
	Last                           string
}

// Load starts one on a node and waits until it flows.
func (c *Cluster) Load(t *T, ns, name string, node Node, target string) *Load {
	l := &Load{pod: c.Pod(t, ns, name, On(node), Label("role", "client"), Args("load", "-every", "50ms", "-t", "5s", target)), target: target}
	t.Within(30*time.Second, "the load on "+target+" flows", func() error {
		total, err := l.Total(t)
		if err == nil && total.Requests == 0 {
			err = errors.New("no request was answered: " + total.Last)
		}
		return err
	})
	return l
}

// Total is the last line that the load printed.
func (l *Load) Total(t *T) (total Total, err error) {
	text, err := l.pod.Logs(t.ctx)
	if err != nil {
		return total, err
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return total, json.Unmarshal([]byte(lines[len(lines)-1]), &total)
}

// Since is what came about after an earlier total.
func (a Total) Since(b Total) Total {
	return Total{At: a.At, Requests: a.Requests - b.Requests, Lost: a.Lost - b.Lost, Dials: a.Dials - b.Dials,
		Refused: a.Refused - b.Refused, WorstMillis: a.WorstMillis, Last: a.Last}
}

// Whole ends the case if a connection was lost or refused since an earlier total.
func (l *Load) Whole(t *T, since Total) {
	var now Total
	// A total is a second old at most: wait for one made after now.
	asked := time.Now().UnixMilli()
	t.Within(30*time.Second, "the load's total", func() (err error) {
		if now, err = l.Total(t); err == nil && now.At < asked {
			err = errors.New("none since it was asked for")
		}
		return err
	})
	d := now.Since(since)
	if d.Lost > 0 || d.Refused > 0 {
		t.Fatalf("load of %s on %s: %d connections lost and %d refused of %d requests and %d new connections; the last: %s", l.pod, l.target, d.Lost, d.Refused, d.Requests, d.Dials, d.Last)
	}
	if d.Requests < 100 {
		t.Fatalf("load of %s on %s: only %d requests were answered", l.pod, l.target, d.Requests)
	}
	t.Note("load of %s: %d requests, %d new connections, none lost; the slowest %d ms", l.pod, d.Requests, d.Dials, now.WorstMillis)
}

// Start is the total from which on a case counts.
func (l *Load) Start(t *T) Total {
	total, err := l.Total(t)
	t.OK(err, "the load's total")
	return total
}

// Watcher is a program in a pod that tries a target every 10 ms and says when the
// outcome turned. All clocks are of one machine in the lab.
type Watcher struct {
	pod   *Pod
	give  *io.PipeWriter
	mu    sync.Mutex
	turns []turn
	err   error
}

type turn struct {
	at   time.Time
	what string // yes, refused, silent
}

// Watcher starts one without a target yet, so that nothing but Target's line is
// between the moment when an address is known and the first attempt.
func (p *Pod) Watcher(t *T) *Watcher {
	in, give := io.Pipe()
	out, write := io.Pipe()
	w := &Watcher{pod: p, give: give}
	go func() {
		err := p.attach(t.ctx, in, write, "echo", "/labecho", "watch", "-every", "10ms", "-t", "1s", "-")
		write.CloseWithError(err)
	}()
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			at, what, _ := strings.Cut(lines.Text(), " ")
			ms, err := strconv.ParseInt(at, 10, 64)
			w.mu.Lock()
			if err != nil {
				w.err = fmt.Errorf("watcher printed %q", lines.Text())
			} else {
				w.turns = append(w.turns, turn{time.UnixMilli(ms), what})
			}
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() { give.Close() })
	t.Within(10*time.Second, "the watcher in "+p.String(), func() error {
		if len(w.Turns()) == 0 {
			return errors.New("it has not begun")
		}
		return nil
	})
	return w
}

// Target sends the watcher off.
func (w *Watcher) Target(target string) { fmt.Fprintln(w.give, target) }

// Stop ends it, so that it costs nothing while something else is measured.
func (w *Watcher) Stop() { w.give.Close() }

func (w *Watcher) Turns() []turn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]turn(nil), w.turns...)
}

// First waits for the first time an outcome was seen.
func (w *Watcher) First(t *T, what string, limit time.Duration) time.Time {
	var at time.Time
	t.Within(limit, w.pod.String()+" sees "+what, func() error {
		for _, tn := range w.Turns() {
			if tn.what == what {
				at = tn.at
				return nil
			}
		}
		return fmt.Errorf("it saw %v", w.Turns())
	})
	return at
}

// Never ends the case if an outcome was seen.
func (w *Watcher) Never(t *T, what string) {
	for _, tn := range w.Turns() {
		if tn.what == what {
			t.Fatalf("%s saw %q at %s", w.pod, what, tn.at.Format("15:04:05.000"))
		}
	}
}
