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
	output        map[key][]string
	passed        int
	failed        int
	skipped       map[string]int // by reason
	failedPackage bool
}

func main() {
	args := append([]string{"test", "-json", "-p", "2", "-timeout", "20m"}, os.Args[1:]...)
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtests:", err)
		os.Exit(1)
	}
	begin := time.Now()
	t := tally{output: map[key][]string{}, skipped: map[string]int{}}
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
	err = cmd.Wait()
	t.summary(time.Since(begin))
	if err != nil || t.failed > 0 || t.failedPackage {
		os.Exit(1)
	}
}

func (t *tally) add(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		if e.Action == "build-output" {
			fmt.Print(e.Output)
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
		} else {
			t.failedPackage = true
			fmt.Printf("FAIL  %-52s %6.1fs\n", short(e.Package), e.Elapsed)
		}
		fmt.Print(strings.Join(t.output[k], ""))
	default:
		return
	}
	if e.Test != "" {
		delete(t.output, k)
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
