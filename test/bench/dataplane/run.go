package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/tombolo-mesh/tombolo/test/bench/stats"
)

// runner is one run of the command.
type runner struct {
	opts  options
	place *workplace
	built int // lanes so far
	out   results
}

// run does the sections that were asked for, and prints when all are done:
// tables come whole, progress goes to standard error.
func run(ctx context.Context, o options) error {
	if err := o.findKubeProxy(); err != nil {
		return err
	}
	place, cleanup, err := newWorkplace()
	if err != nil {
		return err
	}
	defer cleanup()
	r := &runner{opts: o, place: place, out: results{Machine: o.machine()}}
	for _, section := range []struct {
		name string
		run  func(context.Context) error
	}{{"paths", r.paths}, {"packets", r.packets}, {"capacity", r.capacity}} {
		if err != nil || !o.wants(section.name) {
			continue
		}
		if err = section.run(ctx); err != nil {
			err = fmt.Errorf("%s: %w", section.name, err)
		}
	}
	// What was measured before a failure is not lost.
	return errors.Join(err, r.report(err == nil))
}

// report prints and writes. Figures that are not whole are held against no aim.
func (r *runner) report(whole bool) error {
	r.out.Machine.LoadAfter = load()
	if !whole {
		r.out.Paths = slices.DeleteFunc(r.out.Paths, func(f pathFigures) bool { return len(f.Kinds[stream].PerSecond) == 0 })
		r.out.Packets = slices.DeleteFunc(r.out.Packets, func(f packetFigures) bool { return len(f.NS) == 0 })
		r.out.Capacity = slices.DeleteFunc(r.out.Capacity, func(f capacityFigures) bool { return len(f.AddressUS) == 0 })
	} else {
		r.out.Aims = slices.Concat(pathAims(r.out.Paths), packetAims(r.out.Packets), capacityAims(r.out.Capacity))
	}
	if r.opts.json != "" {
		if err := r.out.writeJSON(r.opts.json); err != nil || r.opts.json == "-" {
			return err
		}
	}
	r.out.Machine.print(os.Stdout)
	if len(r.out.Paths) > 0 {
		printPaths(os.Stdout, r.out.Paths)
	}
	if len(r.out.Packets) > 0 {
		printPackets(os.Stdout, r.out.Packets)
	}
	if len(r.out.Capacity) > 0 {
		printCapacity(os.Stdout, r.out.Capacity)
	}
	printAims(os.Stdout, r.out.Aims)
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// kinds are the measures of paths.
var kinds = []string{crr, rr, stream}

// group is how many variants are measured between two measurements of the
// yardstick.
const group = 3

// paths builds every variant, and then measures them in turn.
func (r *runner) paths(ctx context.Context) error {
	var lanes []*lane
	defer func() {
		for _, l := range lanes {
			l.close()
		}
	}()
	for _, v := range r.opts.variants() {
		l, err := r.build(ctx, v)
		if err != nil {
			return err
		}
		lanes = append(lanes, l)
		figures := pathFigures{variant: v, SetUpMS: stats.MS(l.setUp), Kinds: map[string]*series{}}
		for _, k := range kinds {
			figures.Kinds[k] = new(series)
		}
		r.out.Paths = append(r.out.Paths, figures)
		progress("ready after %v: %s, %d services, %d rules", l.setUp.Round(time.Millisecond), v, v.Services, v.Rules)
	}
	for run := range r.opts.runs {
		progress("run %d of %d, load average %s", run+1, r.opts.runs, load())
		for _, kind := range kinds {
			if err := r.turn(ctx, lanes, run, kind); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn measures one kind once for each variant, and the yardstick before each
// group of them. Each turn begins with another variant.
func (r *runner) turn(ctx context.Context, lanes []*lane, run int, kind string) error {
	var base outcome
	measure := func(i int) error {
		l := lanes[i]
		o, err := l.measure(ctx, kind, r.opts.each, r.opts.cpu)
		if err != nil {
			return fmt.Errorf("%s, %d services, %d rules: %w", l.variant, l.Services, l.Rules, err)
		}
		if i == 0 {
			base = o
		}
		r.out.Paths[i].Kinds[kind].add(o, base)
		return nil
	}
	if err := measure(0); err != nil {
		return err
	}
	others := len(lanes) - 1
	for i := range others {
		if i > 0 && i%group == 0 {
			if err := measure(0); err != nil {
				return err
			}
		}
		if err := measure(1 + (i+run*group)%others); err != nil {
			return err
		}
	}
	return nil
}
