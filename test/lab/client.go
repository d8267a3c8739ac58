package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Result of one request of a Client.
type Result struct {
	End  time.Time
	Took time.Duration
	Who  string // who answered: cluster/pod; "" if it failed
	Err  string // "" if it succeeded
}

// Begin is when it was asked.
func (r Result) Begin() time.Time { return r.End.Add(-r.Took) }

// OK reports whether the request was answered.
func (r Result) OK() bool { return r.Err == "" }

// Cluster that answered.
func (r Result) Cluster() string { c, _, _ := strings.Cut(r.Who, "/"); return c }

// ClientOptions of a Client; zero values take the workload's defaults.
type ClientOptions struct {
	Target   string // address:port
	Network  string // tcp, udp
	Interval time.Duration
	Timeout  time.Duration
	Mark     string // said in every request
	Keep     bool   // one connection for all requests
	// Open starts each request at its time, whether or not former ones were
	// answered: with a dead backend the rate stays what it was.
	Open bool

	Unconnected bool // UDP without connect()
}

// Client is a process in a pod that asks a service again and again.
type Client struct {
	Process *Process

	mu      sync.Mutex
	results []Result
	changed chan struct{} // closed and replaced with every result
}

// Client starts a client in the pod.
func (p *Pod) Client(name string, o ClientOptions) (*Client, error) {
	return startClient(name, o, p.Exec)
}

// Client starts a client on the node itself, as a host process.
func (n *Node) Client(name string, o ClientOptions) (*Client, error) {
	return startClient(name, o, n.Exec)
}

func startClient(name string, o ClientOptions, exec func(string, io.Writer, ...string) (*Process, error)) (*Client, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argv := []string{exe, workloadArg, "client", "-target", o.Target}
	for flag, set := range map[string]bool{"-network=" + o.Network: o.Network != "", "-mark=" + o.Mark: o.Mark != "",
		"-interval=" + o.Interval.String(): o.Interval != 0, "-timeout=" + o.Timeout.String(): o.Timeout != 0, "-keep": o.Keep, "-open": o.Open, "-unconnected": o.Unconnected} {
		if set {
			argv = append(argv, flag)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	c := &Client{changed: make(chan struct{})}
	if c.Process, err = exec(name, w, argv...); err != nil {
		r.Close()
		return nil, err
	}
	go func() {
		defer r.Close()
		for s := bufio.NewScanner(r); s.Scan(); {
			if res, ok := parseResult(s.Text()); ok {
				c.add(res)
			}
		}
	}()
	return c, nil
}

func parseResult(line string) (Result, bool) {
	w := strings.SplitN(line, " ", 4)
	if len(w) != 4 {
		return Result{}, false
	}
	end, err1 := strconv.ParseInt(w[0], 10, 64)
	us, err2 := strconv.ParseInt(w[1], 10, 64)
	r := Result{End: time.Unix(0, end), Took: time.Duration(us) * time.Microsecond}
	if w[2] == "ok" {
		r.Who = w[3]
	} else {
		r.Err = w[3]
	}
	return r, err1 == nil && err2 == nil
}

func (c *Client) add(r Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.results = append(c.results, r)
	close(c.changed)
	c.changed = make(chan struct{})
}

// Since is every result that ended at or after t.
func (c *Client) Since(t time.Time) []Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.results[c.from(t):])
}

// from is where the results begin that ended at or after t: a client says them in
// the order of their ends. Callers hold mu.
func (c *Client) from(t time.Time) int {
	i, _ := slices.BinarySearchFunc(c.results, t, func(r Result, t time.Time) int { return r.End.Compare(t) })
	return i
}

// find looks at the results from number i on that ended at or after t. It says
// how many results there are, and how to learn of further ones.
func (c *Client) find(i int, t time.Time, cond func(Result) bool) (found Result, ok bool, n int, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.results[max(i, c.from(t)):] {
		if cond(r) {
			return r, true, len(c.results), c.changed
		}
	}
	return Result{}, false, len(c.results), c.changed
}

// Await waits for a result that ended at or after t and satisfies cond, which is
// asked of each such result once and must not call methods of c.
func (c *Client) Await(ctx context.Context, what string, t time.Time, cond func(Result) bool) (Result, error) {
	for seen := 0; ; {
		found, ok, n, changed := c.find(seen, t, cond)
		if ok {
			return found, nil
		}
		seen = n
		select {
		case <-changed:
		case <-c.Process.Done():
			return Result{}, fmt.Errorf("%s: the client ended: %s", what, c.Process.tail())
		case <-ctx.Done():
			results, last := c.Since(t), "none at all"
			if len(results) > 0 {
				last = fmt.Sprintf("%+v", results[len(results)-1])
			}
			return Result{}, fmt.Errorf("%s: %w; %d results since, the last: %s", what, context.Cause(ctx), len(results), last)
		}
	}
}

// AwaitMore waits until n results have ended since t.
func (c *Client) AwaitMore(ctx context.Context, t time.Time, n int) ([]Result, error) {
	count := 0
	_, err := c.Await(ctx, fmt.Sprintf("%d results", n), t, func(Result) bool {
		count++
		return count >= n
	})
	return c.Since(t), err
}

// Failed counts the failures among results.
func Failed(results []Result) (n int) {
	for _, r := range results {
		if !r.OK() {
			n++
		}
	}
	return n
}

// Shares counts the answers by cluster.
func Shares(results []Result) map[string]int {
	m := map[string]int{}
	for _, r := range results {
		if r.OK() {
			m[r.Cluster()]++
		}
	}
	return m
}
