package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// screen prints the demo's story: on a colour terminal with colours, elsewhere
// the same words plainly, one line per event, nothing redrawn.
type screen struct {
	mu     sync.Mutex
	out    io.Writer
	colour bool
	begin  time.Time
	step   int
}

func (s *screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s *screen) line(mark, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, "%7.2fs  %s %s\n", time.Since(s.begin).Seconds(), mark, fmt.Sprintf(format, args...))
}

// title opens a step: what happens, and what it is to prove.
func (s *screen) title(what, proves string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step++
	fmt.Fprintf(s.out, "\n%s\n", s.paint("1;36", fmt.Sprintf("%2d. %s", s.step, what)))
	fmt.Fprintf(s.out, "    %s\n", s.paint("2", proves))
}

// event says what just happened.
func (s *screen) event(format string, args ...any) { s.line("-", format, args...) }

// figure says what was measured.
func (s *screen) figure(format string, args ...any) {
	s.line(s.paint("33", "="), "%s", s.paint("33", fmt.Sprintf(format, args...)))
}

// claim is a sentence that held or did not, with the figure that shows it.
type claim struct {
	what   string
	held   bool
	figure string
}

func (s *screen) claim(c claim) {
	if c.held {
		s.line(s.paint("32", "ok"), "%s", s.paint("32", c.what+": "+c.figure))
		return
	}
	s.line(s.paint("1;31", "NOT HELD"), "%s", s.paint("1;31", c.what+": "+c.figure))
}

// table prints all claims and returns how many did not hold.
func (s *screen) table(claims []claim) (broken int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(claims) == 0 {
		return 0
	}
	fmt.Fprintf(s.out, "\n%s\n", s.paint("1;36", "Claims"))
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	for _, c := range claims {
		word := "held"
		if !c.held {
			word = "NOT HELD"
			broken++
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", word, c.what, c.figure)
	}
	w.Flush()
	fmt.Fprintln(s.out, strings.Repeat("-", 72))
	fmt.Fprintf(s.out, "%d claims, %d held, %d not held, %.1f s\n", len(claims), len(claims)-broken, broken, time.Since(s.begin).Seconds())
	return broken
}
