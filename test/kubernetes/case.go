package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"
)

// Case is one claim about Tombolo on Kubernetes, and how it is shown.
type Case struct {
	Name  string // for -run
	Claim string // what must hold, a sentence
	Needs []Need
	// Always: the others stand on it, so it runs whatever -run says.
	Always bool
	Run    func(*T)
}

// Need says why a case cannot be shown in this world, or nothing.
type Need func(*World) string

// result is a line of the table.
type result struct {
	Case
	took   time.Duration
	failed string
	skip   string
	notes  []string
}

// T is what a case acts through. Its methods that act end the case when they fail.
type T struct {
	*World
	ctx      context.Context
	name     string
	notes    []string
	cleanups []func()
}

type failure struct{ text string }

// Fatalf ends the case.
func (t *T) Fatalf(format string, args ...any) { panic(failure{fmt.Sprintf(format, args...)}) }

// OK ends the case if there is an error.
func (t *T) OK(err error, what string, args ...any) {
	if err != nil {
		t.Fatalf("%s: %v", fmt.Sprintf(what, args...), err)
	}
}

// Note puts what was measured into the table.
func (t *T) Note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
	t.Logf(format, args...)
}

// Logf prints what the case is at.
func (t *T) Logf(format string, args ...any) {
	fmt.Fprintf(t.out, "    %s  %s\n", time.Since(t.begin).Round(100*time.Millisecond), fmt.Sprintf(format, args...))
}

// Cleanup runs when the case ends, the last one first.
func (t *T) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

// pollEvery is short beside what is waited for.
const pollEvery = 100 * time.Millisecond

// Within waits until there is no error any more, and ends the case when that takes
// longer than the limit. It returns how long it took.
func (t *T) Within(limit time.Duration, what string, f func() error) time.Duration {
	begin := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		t.pause(pollEvery)
	}
}

// During asks again and again for as long as said; the first error ends the case.
func (t *T) During(d time.Duration, what string, f func() error) {
	for end := time.Now().Add(d); time.Now().Before(end); t.pause(pollEvery) {
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func (t *T) pause(d time.Duration) {
	select {
	case <-t.ctx.Done():
		t.Fatalf("interrupted")
	case <-time.After(d):
	}
}

// runCases runs them in order. Where one fails that the others stand on, they are not run.
func (w *World) runCases(ctx context.Context, all []Case) []result {
	var out []result
	broken := ""
	for _, c := range all {
		if !c.Always && !w.run.MatchString(c.Name) {
			continue
		}
		r := result{Case: c}
		for _, need := range c.Needs {
			if r.skip = need(w); r.skip != "" {
				break
			}
		}
		switch {
		case r.skip != "":
			fmt.Fprintf(w.out, "-   %s: skipped: %s\n", c.Name, r.skip)
		case ctx.Err() != nil:
			r.failed = "interrupted"
		case broken != "" && !c.Always:
			r.failed = "not run: " + broken + " failed"
		default:
			r = w.runCase(ctx, c)
			if r.failed != "" && c.Always {
				broken = c.Name
			}
		}
		out = append(out, r)
	}
	return out
}

// caseLimit ends a case that hangs.
const caseLimit = 6 * time.Minute

func (w *World) runCase(ctx context.Context, c Case) (r result) {
	ctx, cancel := context.WithTimeout(ctx, caseLimit)
	defer cancel()
	t := &T{World: w, ctx: ctx, name: c.Name}
	r.Case = c
	begin := time.Now()
	fmt.Fprintf(w.out, ">   %s: %s\n", c.Name, c.Claim)
	r.failed = t.protect(func() { c.Run(t) })
	if r.failed != "" {
		fmt.Fprintf(w.out, "    FAILED: %s\n", r.failed)
		w.keepEvidence(c.Name)
	}
	// Cleaning up goes on after an interrupt, and each part of it whatever the others do.
	var left context.CancelFunc
	t.ctx, left = context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer left()
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		if text := t.protect(t.cleanups[i]); text != "" && r.failed == "" {
			r.failed = "cleaning up: " + text
		}
	}
	r.notes, r.took = t.notes, time.Since(begin)
	return r
}

func (t *T) protect(f func()) (text string) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case failure:
			text = p.text
		default:
			text = fmt.Sprintf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	f()
	return ""
}

// summary prints the table, and is an error if a case failed or none ran.
func summary(out io.Writer, results []result) error {
	var ok, failed, skipped int
	fmt.Fprintln(out)
	for _, r := range results {
		mark, took := "ok", r.took.Round(100*time.Millisecond).String()
		switch {
		case r.failed != "":
			mark, failed = "FAILED", failed+1
		case r.skip != "":
			mark, took, skipped = "skipped", "", skipped+1
		default:
			ok++
		}
		fmt.Fprintf(out, "%-8s %-26s %8s  %s\n", mark, r.Name, took, r.Claim)
		for _, line := range append([]string{r.failed, r.skip}, r.notes...) {
			if line != "" {
				fmt.Fprintf(out, "%45s %s\n", "", strings.ReplaceAll(strings.TrimSpace(line), "\n", "\n"+strings.Repeat(" ", 46)))
			}
		}
	}
	fmt.Fprintf(out, "\n%d held, %d failed, %d skipped\n", ok, failed, skipped)
	switch {
	case failed > 0:
		return fmt.Errorf("%d cases failed", failed)
	case ok == 0:
		return errors.New("no case was run")
	}
	return nil
}
