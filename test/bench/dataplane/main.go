// Command dataplane measures a node's path from pod to pod by a service address:
// Tombolo's at the socket and per packet, the real kube-proxy's rules, and a
// plain routed path with no load balancing at all, in one run and in turn.
// Absolute figures are those of this machine at this moment; compare the ratios.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options of one run of the command.
type options struct {
	services, rules []int
	runs            int
	each            time.Duration
	only            []string
	kubeProxy       string
	json            string
	cpu             int
	quick           bool
}

// quickly is what a machine with other things to do can run.
var quickly = options{services: []int{1, 1000}, rules: []int{0, 100}, runs: 2, each: 150 * time.Millisecond}

var (
	sections = []string{"paths", "packets", "capacity"}
	letters  = []string{"a", "b", "c", "d", "e", "f"}
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == generatorArg {
		exitOn(generator())
		return
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	exitOn(err)
	if os.Geteuid() != 0 {
		exitOn(errors.New("needs root: makes network namespaces and loads BPF programs"))
	}
	code, err := inOwnNamespaces()
	exitOn(err)
	if code >= 0 {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exitOn(run(ctx, o))
	exitOn(ctx.Err())
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-dataplane:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	var services, rules, only string
	fs := flag.NewFlagSet("bench-dataplane", flag.ContinueOnError)
	fs.StringVar(&services, "services", "1,1000,10000,100000", "numbers of services; kube-proxy's rules are measured up to 10000")
	fs.StringVar(&rules, "rules", "0,100,1000", "numbers of policy rules")
	fs.IntVar(&o.runs, "runs", 5, "runs, in each of which all variants are measured in turn")
	fs.DurationVar(&o.each, "each", 500*time.Millisecond, "length of one measurement")
	fs.StringVar(&only, "only", "", "comma-separated: "+strings.Join(sections, ", ")+"; variants of paths by the letter they begin with; all if empty")
	fs.StringVar(&o.kubeProxy, "kube-proxy", "bin/kube-proxy", "the program, from make bin/kube-proxy; empty: without it")
	fs.StringVar(&o.json, "o", "", "file for all figures as JSON")
	fs.IntVar(&o.cpu, "cpu", 0, "CPU of client and server")
	fs.BoolVar(&o.quick, "quick", false, "fewer and shorter: under two minutes")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("takes no arguments, got %q", fs.Args())
	}
	var err error
	if o.services, err = numbers(services); err != nil {
		return o, fmt.Errorf("-services: %w", err)
	}
	if o.rules, err = numbers(rules); err != nil {
		return o, fmt.Errorf("-rules: %w", err)
	}
	if only != "" {
		o.only = strings.Split(only, ",")
		for _, s := range o.only {
			if !slices.Contains(sections, s) && !slices.Contains(letters, s) {
				return o, fmt.Errorf("-only: %q is neither a section (%s) nor a variant (%s)", s, strings.Join(sections, ", "), strings.Join(letters, ", "))
			}
		}
	}
	if o.runs < 1 || o.each <= 0 || o.services[0] < 1 || o.rules[0] < 0 {
		return o, errors.New("runs, length and numbers of services are above zero")
	}
	if o.quick {
		given := map[string]bool{}
		fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
		o.quicker(given)
	}
	return o, nil
}

// quicker leaves alone what was given by name.
func (o *options) quicker(given map[string]bool) {
	if !given["services"] {
		o.services = quickly.services
	}
	if !given["rules"] {
		o.rules = quickly.rules
	}
	if !given["runs"] {
		o.runs = quickly.runs
	}
	if !given["each"] {
		o.each = quickly.each
	}
}

// wants a section. Variants alone are variants of paths.
func (o *options) wants(section string) bool {
	return len(o.only) == 0 || slices.Contains(o.only, section) || section == "paths" && o.anyOf(letters)
}

// wantsVariant: all, unless some were named.
func (o *options) wantsVariant(letter string) bool {
	return !o.anyOf(letters) || slices.Contains(o.only, letter)
}

func (o *options) anyOf(names []string) bool {
	return slices.ContainsFunc(o.only, func(s string) bool { return slices.Contains(names, s) })
}

// numbers, in order, once each.
func numbers(list string) ([]int, error) {
	var out []int
	for f := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(f))
		if err != nil {
			return nil, fmt.Errorf("%q is no list of numbers", list)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
