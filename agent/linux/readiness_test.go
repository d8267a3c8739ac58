package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Thresholds and periods, in virtual time.
func TestProbeLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		answers := []bool{false, true, true, true, false, true, false, false, true}
		start, got, i := time.Now(), []string(nil), 0
		probe := withDefaults(clustermesh.Probe{InitialDelay: 5 * time.Second, SuccessThreshold: 2, FailureThreshold: 2})
		probeLoop(ctx, probe, func(context.Context) error {
			if i++; i > len(answers) {
				cancel()
				return nil
			}
			if !answers[i-1] {
				return errors.New("no")
			}
			return nil
		}, func(ready bool) { got = append(got, fmt.Sprintf("%v@%d", ready, int(time.Since(start).Seconds()))) })
		if want := []string{"true@25", "true@35", "false@75"}; !slices.Equal(got, want) {
			t.Errorf("verdicts %v, want %v", got, want)
		}
	})
}

func TestProbeOnce(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
		case "/moved":
			http.Redirect(w, r, "/nowhere", http.StatusFound)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer server.Close()
	at := netip.MustParseAddrPort(server.Listener.Addr().String())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(closed.Addr().String()).Port()
	closed.Close()
	for _, c := range []struct {
		probe clustermesh.Probe
		want  bool
	}{
		{clustermesh.Probe{Kind: "http", Port: at.Port(), Path: "/ok"}, true},
		{clustermesh.Probe{Kind: "http", Port: at.Port(), Path: "/moved"}, true},
		{clustermesh.Probe{Kind: "http", Port: at.Port(), Path: "/bad"}, false},
		{clustermesh.Probe{Kind: "http", Port: nobody, Path: "/ok"}, false},
		{clustermesh.Probe{Kind: "tcp", Port: at.Port()}, true},
		{clustermesh.Probe{Kind: "tcp", Port: nobody}, false},
		{clustermesh.Probe{Kind: "exec", Port: at.Port()}, false},
	} {
		if err := probeOnce(t.Context(), c.probe, at.Addr()); (err == nil) != c.want {
			t.Errorf("%+v: %v", c.probe, err)
		}
	}
}

// A pod with a probe is reported as not ready until it passes, also when the
// probe was known before the pod was added.
func TestReadinessOfPod(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	node, one := newNS(t), newNS(t)
	p := openPods(t, node, t.TempDir(), nil)
	defer p.Close()
	r := NewReadiness(ctx, p)
	probe := map[string]clustermesh.Probe{"uid-a": {Kind: "tcp", Port: 1, InitialDelay: time.Hour}}
	r.Update(probe)
	if _, err := p.Add(ctx, request(one, "uid-a", "c1")); err != nil {
		t.Fatal(err)
	}
	r.Update(probe)
	ready := func() bool { return p.reports()[0].Ready }
	if ready() {
		t.Error("ready before its probe passed")
	}
	p.SetReady("uid-a", true)
	r.Update(probe) // nothing new: the verdict stays
	if !ready() {
		t.Error("not ready although its probe passed")
	}
	p.SetReady("uid-a", false)
	r.Update(nil)
	if !ready() {
		t.Error("not ready although it has no probe any more")
	}
	cancel()
	r.Wait()
}
