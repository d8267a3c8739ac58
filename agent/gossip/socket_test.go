package gossip

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tombolo-mesh/tombolo/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// freePort is one that nobody listens at, on any of the loopback's addresses.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Over real sockets: three agents find one another, hear what one says, and stop
// without leaving anything behind; one whose port is taken says so.
func TestRealSockets(t *testing.T) {
	port := freePort(t)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var all []*Gossip
	peers := map[string][]netip.Addr{}
	for i := range 3 {
		peers[fmt.Sprintf("node-%d", i+1)] = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 7, byte(i + 1)})}
	}
	for name, addrs := range peers {
		g := New(Config{Cluster: "aws", Node: name, Address: addrs[0], Port: port})
		if err := g.SetKeys([][]byte{key(1)}); err != nil {
			t.Fatal(err)
		}
		g.SetPeers(peers)
		running.Go(func() { g.Run(ctx) })
		all = append(all, g)
	}
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within 30 s: %s", what)
			}
		}
	}
	for _, g := range all {
		await("all see all", func() bool { return len(g.View().Alive) == 3 })
	}
	missed := agent.NodeKey{Cluster: 2, Node: 7}
	all[0].Report(map[agent.NodeKey]uint8{missed: 5})
	for _, g := range all[1:] {
		await("a report is heard", func() bool { return g.View().Missing[all[0].cfg.Node][missed] == 5 })
	}
	twin := New(Config{Cluster: "aws", Node: "twin", Address: all[0].cfg.Address, Port: port})
	if err := twin.SetKeys([][]byte{key(1)}); err != nil {
		t.Fatal(err)
	}
	running.Go(func() { twin.Run(ctx) })
	await("a port that is taken is a problem", func() bool { return twin.Problem() != nil })
	stop()
	running.Wait()
}
