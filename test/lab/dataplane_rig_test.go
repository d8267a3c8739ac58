package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// place is where a connection is opened: a pod's network namespace without its
// cgroup (so that packets are translated, not sockets), a node, or a machine
// outside.
type place struct {
	name string
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

func atPod(p *Pod) place { return place{"pod " + p.Name, p.host.dial} }

func atNode(n *Node) place { return place{"node " + n.Name, n.host.dial} }

func atOutsider(o *Outsider) place { return place{"outsider " + o.Name, o.host.dial} }

// answer is what a server pod says: who it is, and the address it was asked from.
type answer struct {
	who  string
	from netip.Addr
}

// call opens a connection, asks once and closes it.
func (at place) call(network string, to netip.AddrPort, timeout time.Duration) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := at.dial(ctx, network, to.String())
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return askOn(conn, timeout)
}

func askOn(conn net.Conn, timeout time.Duration) (answer, error) {
	conn.SetDeadline(time.Now().Add(timeout))
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return answer{}, err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return answer{}, err
	}
	words := strings.Fields(line)
	if len(words) != 3 {
		return answer{}, fmt.Errorf("strange answer %q", line)
	}
	from, err := netip.ParseAddrPort(words[2])
	return answer{words[0], from.Addr().Unmap()}, err
}

const (
	callTimeout = 4 * time.Second        // two lost SYNs on a busy machine
	deadTimeout = 700 * time.Millisecond // for what must not be answered
)

// allowed polls until a call is answered, and returns the answer.
func (r *rig) allowed(at place, network string, to netip.AddrPort) (got answer) {
	r.t.Helper()
	r.eventually(15*time.Second, fmt.Sprintf("%s reaches %s/%s", at.name, to, network), func() (err error) {
		got, err = at.call(network, to, callTimeout)
		return err
	})
	return got
}

// expectation is one line of who may reach whom.
type expectation struct {
	at      place
	network string
	to      netip.AddrPort
	may     bool
}

func (e expectation) check() error {
	timeout := deadTimeout
	if e.may {
		timeout = callTimeout
	}
	got, err := e.at.call(e.network, e.to, timeout)
	switch {
	case e.may && err != nil:
		return fmt.Errorf("%s does not reach %s/%s: %w", e.at.name, e.to, e.network, err)
	case !e.may && err == nil:
		return fmt.Errorf("%s reaches %s/%s (%s), which is forbidden", e.at.name, e.to, e.network, got.who)
	}
	return nil
}

// expect polls until all of it holds at once, then makes sure that it stays so.
func (r *rig) expect(list []expectation) {
	r.t.Helper()
	all := func() error {
		errs := make([]error, len(list))
		var wg sync.WaitGroup
		for i, e := range list {
			wg.Go(func() { errs[i] = e.check() })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	r.eventually(20*time.Second, "who may reach whom", all)
	if err := all(); err != nil {
		r.t.Errorf("it did not stay so: %v", err)
	}
}

// newCluster is one cluster of two nodes.
func newCluster(t *testing.T, flags ...string) *rig {
	t.Helper()
	r := newEmptyRig(t, Options{})
	r.a = must(r.AddCluster("aws", 2))(t)
	for _, n := range r.a.Nodes {
		n.AgentFlags = flags
	}
	noError(t, r.a.Start(r.ctx))
	return r
}

// server adds a pod that serves TCP and UDP at checkoutPort.
func (r *rig) server(name string, node int, labels map[string]string) *Pod {
	r.t.Helper()
	return must(r.a.Nodes[node].AddPod(r.ctx, PodSpec{Name: name, Labels: labels, Port: checkoutPort, Argv: ServeArgv(name, checkoutPort)}))(r.t)
}

// families runs f for both families; pick chooses the address of that family.
func (r *rig) families(f func(r *rig, pick func([]netip.Addr) netip.Addr)) {
	for _, v6 := range []bool{false, true} {
		name := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		r.t.Run(name, func(t *testing.T) {
			f(r.in(t), func(addrs []netip.Addr) netip.Addr {
				for _, a := range addrs {
					if a.Is6() == v6 {
						return a
					}
				}
				t.Fatalf("no %s address in %v", name, addrs)
				return netip.Addr{}
			})
		})
	}
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// underlays are a node's addresses in the underlay.
func (n *Node) underlays() []netip.Addr { return []netip.Addr{n.Underlay(), n.Underlay6()} }
