package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// totals are since the start. Lost are kept connections that broke or fell
// silent, Refused are new ones that did not come about.
type totals struct {
	Requests, Lost, Dials, Refused atomic.Int64
	worst                          atomic.Int64
	mu                             sync.Mutex
	last                           string
}

func (t *totals) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = time.Now().UTC().Format("15:04:05.000 ") + err.Error()
}

func (t *totals) print() {
	t.mu.Lock()
	last := t.last
	t.mu.Unlock()
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"at": time.Now().UnixMilli(), "requests": t.Requests.Load(), "lost": t.Lost.Load(), "dials": t.Dials.Load(),
		"refused": t.Refused.Load(), "worstMillis": t.worst.Load() / 1e6, "last": last,
	})
}

// ask sends a line and waits for the answer.
func (t *totals) ask(c net.Conn, r *bufio.Reader, limit time.Duration) error {
	begin := time.Now()
	c.SetDeadline(begin.Add(limit))
	fmt.Fprint(c, "hi\n")
	if _, err := r.ReadString('\n'); err != nil {
		return err
	}
	t.Requests.Add(1)
	for d := int64(time.Since(begin)); ; {
		if w := t.worst.Load(); d <= w || t.worst.CompareAndSwap(w, d) {
			return nil
		}
	}
}

func load(target string, open int, every, limit time.Duration) {
	var t totals
	go pauseThenExit()
	for range open {
		go func() {
			for ; ; time.Sleep(every) {
				c, err := net.DialTimeout("tcp", target, limit)
				if err != nil {
					t.Refused.Add(1)
					t.failed(err)
					continue
				}
				for r := bufio.NewReader(c); err == nil; time.Sleep(every) {
					err = t.ask(c, r, limit)
				}
				c.Close()
				t.Lost.Add(1)
				t.failed(err)
			}
		}()
	}
	go func() {
		for ; ; time.Sleep(every) {
			t.Dials.Add(1)
			c, err := net.DialTimeout("tcp", target, limit)
			if err == nil {
				err = t.ask(c, bufio.NewReader(c), limit)
				c.Close()
			}
			if err != nil {
				t.Refused.Add(1)
				t.failed(err)
			}
		}
	}()
	for range time.Tick(time.Second) {
		t.print()
	}
}

// watch prints when the target begins to answer, and when it stops: the time in
// milliseconds and "yes", "refused" or "silent". Attempts do not wait for one another.
// Target "-": a line of stdin names it, and the end of stdin ends the program.
func watch(target string, every, limit time.Duration) {
	go pauseThenExit()
	if target == "-" {
		fmt.Printf("%d waiting\n", time.Now().UnixMilli())
		in := bufio.NewReader(os.Stdin)
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		target = strings.TrimSpace(line)
		go func() {
			in.ReadString('\n')
			os.Exit(0)
		}()
	}
	type outcome struct {
		at   time.Time
		what string
	}
	results := make(chan outcome, 1000)
	go func() {
		for range time.Tick(every) {
			go func() {
				c, err := net.DialTimeout("tcp", target, limit)
				what := "yes"
				switch {
				case errors.Is(err, syscall.ECONNREFUSED):
					what = "refused"
				case err != nil:
					what = "silent"
				default:
					c.SetDeadline(time.Now().Add(limit))
					fmt.Fprint(c, "hi\n")
					if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
						what = "silent"
					}
					c.Close()
				}
				results <- outcome{time.Now(), what}
			}()
		}
	}()
	now := ""
	for r := range results {
		if r.what != now {
			now = r.what
			fmt.Printf("%d %s\n", r.at.UnixMilli(), now)
		}
	}
}
