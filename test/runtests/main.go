// Command runtests runs `go test` with the flags given, shows failures and one
// line a package, and ends with how many tests ran and how many were skipped,
// and why: a skip is never silent.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// event is a line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type key struct{ pkg, test string }

type tally struct {
	output   map[key][]string
	passed   int
	failed   int
	failedIn map[string]int
	skipped  map[string]int  // by reason
	broken   map[string]bool // packages that failed
	crashed  map[string]bool // packages in which the race detector itself broke down
}

func main() {
	begin := time.Now()
	t := tally{output: map[key][]string{}, failedIn: map[string]int{}, skipped: map[string]int{}, broken: map[string]bool{}, crashed: map[string]bool{}}
	ok := t.run(os.Args[1:])
	for range 3 {
		crashed := t.raceCrashes()
		if ok || len(crashed) == 0 || len(crashed) != len(t.broken) {
			break
		}
		// The race detector's own runtime broke down: nothing was found, and
		// nothing was tested either.
		fmt.Println("once more, as the race detector itself broke down:", strings.Join(crashed, " "))
		t.forget(crashed)
		ok = t.run(append(flagsOf(os.Args[1:]), crashed...))
	}
	t.summary(time.Since(begin))
	if !ok || t.failed > 0 || len(t.broken) > 0 {
		os.Exit(1)
	}
}

// flagsOf are the arguments before the first package.
func flagsOf(args []string) []string {
	for i, a := range args {
		if !strings.HasPrefix(a, "-") {
			return slices.Clone(args[:i])
		}
	}
	return slices.Clone(args)
}

// run runs go test once and says whether it ended well.
func (t *tally) run(args []string) bool {
	cmd := exec.Command("go", append([]string{"test", "-json", "-p", "2", "-timeout", "20m"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtests:", err)
		os.Exit(1)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // not JSON: the compiler's words
			continue
		}
		t.add(e)
	}
	return cmd.Wait() == nil
}

// raceCrashes are the failed packages whose output says that the race
// detector's runtime failed a check of its own.
func (t *tally) raceCrashes() (packages []string) {
	for pkg := range t.broken {
		if t.crashed[pkg] {
			packages = append(packages, pkg)
		}
	}
	slices.Sort(packages)
	return packages
}

// detectorCrash says whether a line is what the race detector's runtime says when
// it fails a check of its own, as before LLVM 15 and since.
func detectorCrash(line string) bool {
	return strings.Contains(line, "ThreadSanitizer: CHECK failed") || strings.Contains(line, "ThreadSanitizer CHECK failed")
}

// forget drops what is known of packages that are run again.
func (t *tally) forget(packages []string) {
	for _, pkg := range packages {
		t.failed -= t.failedIn[pkg]
		delete(t.failedIn, pkg)
		delete(t.broken, pkg)
		delete(t.crashed, pkg)
	}
	for k := range t.output {
		if slices.Contains(packages, k.pkg) {
			delete(t.output, k)
		}
	}
}

func (t *tally) add(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		if e.Action == "build-output" {
			fmt.Print(e.Output)
		}
		if detectorCrash(e.Output) {
			t.crashed[e.Package] = true
		}
		t.output[k] = append(t.output[k], e.Output)
		return
	case "pass":
		if e.Test != "" {
			t.passed++
		} else {
			fmt.Printf("ok    %-52s %6.1fs\n", short(e.Package), e.Elapsed)
		}
	case "skip":
		if e.Test != "" {
			t.skipped[t.reason(k)]++
		}
	case "fail":
		if e.Test != "" {
			t.failed++
			t.failedIn[e.Package]++
		} else {
			t.broken[e.Package] = true
			fmt.Printf("FAIL  %-52s %6.1fs\n", short(e.Package), e.Elapsed)
			t.unfinished(e.Package)
		}
		fmt.Print(strings.Join(t.output[k], ""))
	default:
		return
	}
	if e.Test != "" {
		delete(t.output, k)
	}
}

// unfinished prints what the tests of a package said that began and did not
// end: what ended the process is among it.
func (t *tally) unfinished(pkg string) {
	const first, last = 40, 20 // lines a test: the cause is at the beginning of a dump, the end is what came just before
	for k, lines := range t.output {
		if k.pkg != pkg || k.test == "" {
			continue
		}
		if left := len(lines) - first - last; left > 0 {
			lines = slices.Concat(lines[:first], []string{fmt.Sprintf("      %d lines are left out\n", left)}, lines[len(lines)-last:])
		}
		fmt.Print(strings.Join(lines, ""))
	}
}

// reason is what the test said when it skipped.
func (t *tally) reason(k key) string {
	for _, line := range slices.Backward(t.output[k]) {
		if _, why, ok := strings.Cut(line, ".go:"); ok {
			if _, why, ok = strings.Cut(why, ": "); ok {
				return strings.TrimSpace(why)
			}
		}
	}
	return "no reason given"
}

func (t *tally) summary(took time.Duration) {
	reasons := make([]string, 0, len(t.skipped))
	total := 0
	for why, n := range t.skipped {
		total += n
		reasons = append(reasons, fmt.Sprintf("%6d skipped: %s", n, why))
	}
	slices.Sort(reasons)
	fmt.Println()
	for _, r := range reasons {
		fmt.Println(r)
	}
	fmt.Printf("took %s\n%d passed, %d failed, %d skipped\n", took.Round(time.Second), t.passed, t.failed, total)
}

func short(pkg string) string {
	return strings.TrimPrefix(pkg, "github.com/tombolo-mesh/tombolo/")
}
