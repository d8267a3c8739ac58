package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// readKernel reads all tables before anything else, so that what is there is
// known before the first wish is.
func (a *Agent) readKernel(ctx context.Context) bool {
	for _, d := range a.state.t.all() {
		for !d.Scanned() {
			done, err := d.Resync(turnResync)
			if err != nil {
				a.readFailed(d.name(), err)
			} else if done {
				a.readWorks(d.name())
			}
			if !a.pause(ctx, err) {
				return false
			}
		}
		a.kernelHadRows = a.kernelHadRows || d.Held() > 0 || d.Pending() > 0
	}
	a.resyncAt = a.nextResync()
	return true
}

// pause serves the API, and after an error waits; false = ctx ended.
func (a *Agent) pause(ctx context.Context, err error) bool {
	var wait <-chan time.Time
	if err != nil {
		wait = time.After(resyncRetry)
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case f := <-a.events:
			f()
			continue
		case <-wait:
			return true
		default:
		}
		if wait == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case f := <-a.events:
			f()
		case <-wait:
			return true
		}
	}
}

func (a *Agent) nextResync() time.Time {
	if a.cfg.Resync < 0 {
		return time.Time{}
	}
	return time.Now().Add(a.cfg.Resync + rand.N(a.cfg.Resync/4+1))
}

func (a *Agent) readFailed(table string, err error) {
	a.quiet.failed("read "+table, "cannot read a table; trying again", err, "table", table)
	a.problems["read "+table] = readProblem(table, err)
}

func (a *Agent) readWorks(table string) {
	a.quiet.works("read "+table, "a table can be read again", "table", table)
	delete(a.problems, "read "+table)
}

func readProblem(table string, err error) clustermesh.Problem {
	return clustermesh.Problem{
		What: "table " + table + " cannot be read", Why: err.Error(),
		Fix: "it is tried again by itself; until then rows that drifted are not repaired",
	}
}

// resyncStep reads a piece of a table again when one is due.
func (a *Agent) resyncStep(now time.Time) (more bool) {
	if !a.resyncAt.IsZero() && !now.Before(a.resyncAt) {
		a.resyncAt = a.nextResync()
		a.addResync("")
	}
	if !a.retryAt.IsZero() {
		if now.Before(a.retryAt) {
			return false
		}
		a.retryAt = time.Time{}
	}
	if len(a.resync) == 0 {
		return false
	}
	d := a.resync[0]
	done, err := d.Resync(turnResync)
	switch {
	case err != nil:
		a.readFailed(d.name(), err)
		a.resync = append(a.resync[1:], d)
		a.retryAt = now.Add(resyncRetry)
		return false
	case done:
		a.readWorks(d.name())
		a.resync = a.resync[1:]
	}
	return true
}

// addResync has a table (or, with "", all) read again. A reading under way
// begins anew: it may have passed what changed.
func (a *Agent) addResync(name string) {
	for _, d := range a.state.t.all() {
		if name != "" && d.name() != name {
			continue
		}
		if name != "" {
			d.StopResync()
		}
		if !slices.Contains(a.resync, d) {
			a.resync = append(a.resync, d)
		}
	}
}
