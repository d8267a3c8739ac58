package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// talk is a conversation with a backend over one connection.
type talk struct {
	name   string
	client *Client  // a process that keeps its connection, whose sockets are translated
	conn   net.Conn // or a connection whose packets are translated
	idle   bool     // it waits, and says nothing
	who    string   // answers
}

// talks opens conversations by open until one is with each of the backends.
func (r *rig) talks(name string, backends []string, open func() *talk) (out []*talk) {
	r.t.Helper()
	for range 30 {
		k := open()
		if i := slices.Index(backends, k.who); i >= 0 {
			k.name = name + " with " + k.who
			out, backends = append(out, k), slices.Delete(slices.Clone(backends), i, i+1)
		} else {
			k.close()
		}
		if len(backends) == 0 {
			return out
		}
	}
	r.t.Fatalf("%s: none of 30 connections is with %v", name, backends)
	return nil
}

func (k *talk) close() {
	if k.client != nil {
		k.client.Process.Kill()
	} else {
		k.conn.Close()
	}
}

// kept opens a conversation by a process.
func (r *rig) kept(start func(string, ClientOptions) (*Client, error), network, target string) *talk {
	r.t.Helper()
	c := must(start("kept", ClientOptions{Network: network, Target: target, Keep: true, Interval: 100 * time.Millisecond, Timeout: time.Minute}))(r.t)
	first := must(c.Await(r.ctx, "an answer", time.Time{}, Result.OK))(r.t)
	return &talk{client: c, who: first.Who}
}

// dialled opens a conversation from the namespace of a pod.
func (r *rig) dialled(p *Pod, network, target string) *talk {
	r.t.Helper()
	conn := must(p.Dial(r.ctx, network, target))(r.t)
	who := must(ask(conn, "hello", time.Now().Add(callTimeout)))(r.t)
	return &talk{conn: conn, who: who}
}

// end waits until the conversation has ended, and says when and how: by an error,
// or as somebody else answers.
func (k *talk) end(ctx context.Context, since time.Time) (time.Time, string, error) {
	if k.client != nil {
		res, err := k.client.Await(ctx, k.name, since, func(r Result) bool { return !r.OK() || r.Who != k.who })
		return res.End, res.Err + res.Who, err
	}
	for {
		if ctx.Err() != nil {
			return time.Time{}, "", fmt.Errorf("%s: %w", k.name, context.Cause(ctx))
		}
		deadline := time.Now().Add(300 * time.Millisecond)
		var who string
		var err error
		if k.idle {
			k.conn.SetDeadline(deadline)
			_, err = k.conn.Read(make([]byte, 1))
		} else {
			who, err = ask(k.conn, "hello", deadline)
		}
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout():
		case err != nil:
			return time.Now(), err.Error(), nil
		case who != k.who:
			return time.Now(), who, nil
		default:
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// Established connections to a node that loses its power end 5 s after it was judged
// down, so that clients try again; datagrams go to another backend. Those with other
// backends know nothing of it.
func TestResets(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{nodes: 2})
	r.affinity(r.a, "remote")
	dead, gone, stays := r.b.Nodes[1], "gcp/checkout-2", "gcp/checkout-1"
	both := []string{gone, stays}
	var all []*talk
	defer func() {
		for _, k := range all {
			k.close()
		}
	}()
	for i, vip := range []string{checkout4, checkout6} {
		family := []string{"IPv4", "IPv6"}[i]
		for network, target := range map[string]string{"tcp": net.JoinHostPort(vip, "80"), "udp": net.JoinHostPort(vip, "53")} {
			all = slices.Concat(all,
				r.talks("a pod's process, "+network+", "+family, both, func() *talk { return r.kept(r.client.Client, network, target) }),
				r.talks("a pod's packets, "+network+", "+family, both, func() *talk { return r.dialled(r.client, network, target) }),
			)
			if network == "tcp" {
				all = append(all, r.talks("a pod's packets, none of them, "+family, both, func() *talk {
					k := r.dialled(r.client, network, target)
					k.idle = true
					return k
				})...)
			}
			if i == 0 {
				all = append(all, r.talks("the node, "+network+", "+family, both, func() *talk { return r.kept(r.a.Nodes[0].Client, network, target) })...)
			}
		}
	}

	begin := time.Now()
	noError(t, dead.PowerOff())
	r.eventually(20*time.Second, dead.Name+" is judged down", func() error {
		down := r.agentStatus(r.a.Nodes[0]).Health.Down
		if !slices.ContainsFunc(down, func(d agent.DownStatus) bool { return d.Cluster == "gcp" && d.Node == dead.Name }) {
			return fmt.Errorf("down: %+v", down)
		}
		return nil
	})
	judged := time.Now()
	t.Logf("judged down after %.2f s", judged.Sub(begin).Seconds())
	// 5 s, one for the work, and some as the machine has other things to do.
	limit := judged.Add(5*time.Second + time.Second + 4*time.Second)
	ctx, cancel := context.WithDeadlineCause(r.ctx, limit, errors.New("it goes on"))
	defer cancel()
	type ending struct {
		talk *talk
		at   time.Time
		how  string
		err  error
	}
	ends, waiting := make(chan ending), 0
	for _, k := range all {
		if k.who == gone {
			waiting++
			go func() {
				at, how, err := k.end(ctx, begin)
				ends <- ending{k, at, how, err}
			}()
		}
	}
	for range waiting {
		e := <-ends
		switch {
		case e.err != nil:
			t.Error(e.err)
		case e.how == gone || strings.Contains(e.how, "i/o timeout"):
			t.Errorf("%s: %s", e.talk.name, e.how)
		default:
			t.Logf("%s: after %.2f s, %+.2f s from the verdict: %s", e.talk.name, e.at.Sub(begin).Seconds(), e.at.Sub(judged).Seconds(), e.how)
		}
	}
	for _, k := range all {
		if k.who == gone {
			continue
		}
		if k.client != nil {
			for _, res := range k.client.Since(begin) {
				if res.Who != k.who {
					t.Errorf("%s: %+v", k.name, res)
				}
			}
			_, err := k.client.AwaitMore(r.ctx, time.Now(), 2)
			noError(t, err)
		} else if who, err := ask(k.conn, "hello", time.Now().Add(callTimeout)); who != k.who {
			t.Errorf("%s: %q, %v", k.name, who, err)
		}
	}
}
