package linux

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// healthRig serves on an address of loopback that is this test's alone.
type healthRig struct {
	t       *testing.T
	h       *HealthPorts
	at      netip.Addr
	healthy atomic.Bool
	client  *http.Client
}

var healthRigs atomic.Int32

func newHealthRig(t *testing.T) *healthRig {
	pid := os.Getpid()
	r := &healthRig{t: t, at: netip.AddrFrom4([4]byte{127, byte(100 + pid%100), byte(1 + pid/100%200), byte(healthRigs.Add(1))}),
		client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	r.healthy.Store(true)
	r.h = NewHealthPorts(func() []netip.Addr { return []netip.Addr{r.at} }, r.healthy.Load, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *healthRig) set(name string, port uint16, endpoints int) {
	r.h.Set([]agent.HealthPort{{Service: clustermesh.ServiceName{Namespace: "shop", Name: name}, Port: port, Endpoints: endpoints}})
}

func (r *healthRig) ask(port uint16) string {
	res, err := r.client.Get(fmt.Sprintf("http://%s/", netip.AddrPortFrom(r.at, port)))
	if err != nil {
		return "nobody"
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return fmt.Sprintf("%d weight=%s %s %s", res.StatusCode, res.Header.Get("X-Load-Balancing-Endpoint-Weight"), res.Header.Get("Content-Type"), strings.TrimSpace(string(body)))
}

func (r *healthRig) expect(port uint16, want string) {
	r.t.Helper()
	var got string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got = r.ask(port); got == want {
			return
		}
	}
	r.t.Fatalf("port %d: %s, want %s", port, got, want)
}

func TestHealthPorts(t *testing.T) {
	r := newHealthRig(t)
	const body = `application/json {"service":{"namespace":"shop","name":"web"},"localEndpoints":%d,"serviceProxyHealthy":%v}`
	answer := func(status, endpoints int, healthy bool) string {
		return fmt.Sprintf("%d weight=%d ", status, endpoints) + fmt.Sprintf(body, endpoints, healthy)
	}
	r.set("web", 32001, 2)
	r.expect(32001, answer(200, 2, true))
	r.set("web", 32001, 0)
	r.expect(32001, answer(503, 0, true))
	r.set("web", 32001, 1)
	r.expect(32001, answer(200, 1, true))
	r.healthy.Store(false)
	r.expect(32001, answer(503, 1, false))
	r.healthy.Store(true)
	r.set("web", 32002, 1) // another port
	r.expect(32002, answer(200, 1, true))
	r.expect(32001, "nobody")
	r.set("web", 0, 0)
	r.expect(32002, "nobody")
}

// A port that somebody else has is a problem that is named, and is served when it
// is free. One that changes hands between services is free at once.
func TestHealthPortsTaken(t *testing.T) {
	r := newHealthRig(t)
	l, err := net.Listen("tcp", netip.AddrPortFrom(r.at, 32003).String())
	if err != nil {
		t.Fatal(err)
	}
	r.set("web", 32003, 1)
	for end := time.Now().Add(20 * time.Second); len(r.h.Problems()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no problem is named")
		}
	}
	if p := r.h.Problems()[0]; !strings.Contains(p.What, "health check port 32003 of service shop/web") || !strings.Contains(p.Why, "address already in use") {
		t.Errorf("%+v", p)
	}
	l.Close()
	r.set("web", 32003, 3) // tried again with every change
	r.expect(32003, `200 weight=3 application/json {"service":{"namespace":"shop","name":"web"},"localEndpoints":3,"serviceProxyHealthy":true}`)
	if p := r.h.Problems(); len(p) != 0 {
		t.Errorf("%+v", p)
	}
	r.h.Set([]agent.HealthPort{{Service: clustermesh.ServiceName{Namespace: "shop", Name: "other"}, Port: 32003, Endpoints: 7},
		{Service: clustermesh.ServiceName{Namespace: "shop", Name: "web"}}})
	r.expect(32003, `200 weight=7 application/json {"service":{"namespace":"shop","name":"other"},"localEndpoints":7,"serviceProxyHealthy":true}`)
}
