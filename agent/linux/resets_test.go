package linux

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/bpf"
)

// A pod's socket to a backend that is gone is ended in the pod's own namespace;
// one to another backend goes on.
func TestResets(t *testing.T) {
	ctx := context.Background()
	node, client, server := newNS(t), newNS(t), newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	if _, err := p.Add(ctx, request(client, "uid-a", "c1")); err != nil {
		t.Fatal(err)
	}
	at, err := p.Add(ctx, request(server, "uid-b", "c2"))
	if err != nil {
		t.Fatal(err)
	}
	address := at.IPs[0].Address.Addr()
	listen := func() int { return int(acceptAt(t, server, address.String())) }
	dial := func(port int) (conn *net.TCPConn) {
		client.in(func() error {
			c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: address.AsSlice(), Port: port})
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
			conn = c
			return err
		})
		return conn
	}
	gone, stays := listen(), listen()
	a, b := dial(gone), dial(stays)
	err = NewResets(p, &bpf.Maps{Flows: newFlowsMap(t)}).Reset(ctx, []agent.BackendKey{{Addr: agent.MakeAddr(address), Port: uint16(gone), Proto: unix.IPPROTO_TCP}})
	if err != nil {
		t.Fatal(err)
	}
	a.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("the socket to the backend that is gone says %v", err)
	}
	b.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := b.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("the socket to the other backend says %v, want a timeout", err)
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
