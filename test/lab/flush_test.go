package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Somebody else takes our routes away: all of them at once, as a network manager
// does when it is reloaded, or by setting the tunnel down and up. The agent puts
// them back in a moment, not at the next resync.
func TestRoutesTakenAway(t *testing.T) {
	t.Parallel()
	r := newMesh(t, rigOptions{})
	n := r.a.Nodes[0]
	ip := func(args ...string) string {
		out := must(n.host.run(r.ctx, nil, "", append([]string{"ip"}, args...)...))(t)
		return string(out)
	}
	there := func() map[string]bool {
		routes := map[string]bool{}
		for line := range strings.Lines(ip("route", "show", "proto", "84") + ip("-6", "route", "show", "proto", "84")) {
			if !strings.Contains(line, "metric 8410") { // those of pods come with the pods
				routes[strings.TrimSpace(line)] = true
			}
		}
		return routes
	}
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"flush", func() { ip("route", "flush", "proto", "84"); ip("-6", "route", "flush", "proto", "84") }},
		{"down and up", func() { ip("link", "set", n.device(), "down"); ip("link", "set", n.device(), "up") }},
	} {
		before := there()
		if len(before) == 0 {
			t.Fatal("no routes")
		}
		begin := time.Now()
		c.do()
		r.eventually(5*time.Second, c.what+": all routes are back", func() error {
			now := there()
			for route := range before {
				if !now[route] {
					return fmt.Errorf("%d of %d routes are there", len(now), len(before))
				}
			}
			return nil
		})
		t.Logf("%s: %d routes are back after %.3f s", c.what, len(before), time.Since(begin).Seconds())
	}
	r.awaitTunnels()
}
