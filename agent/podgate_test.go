package agent_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tombolo-mesh/tombolo/agent"
)

// A pod is connected only once its packets to other clusters cannot leave in
// clear: the peers are known, and their blackholes are in the kernel.
func TestPodsWaitForBlackholes(t *testing.T) {
	add := func(w *world) (int, string) {
		return w.request("POST", "/v1/pods/add", bytes.NewBufferString(`{"name":"p","ifName":"eth0"}`))
	}
	t.Run("nobody says who the peers are", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, pods := newWorld(t), &fakePods{}
			w.cfg.Pods = pods
			w.mesh.Cut("aws", errors.New("out of reach"))
			w.start()
			defer w.stop()
			if code, body := add(w); code != 503 || !strings.Contains(body, "which pod prefixes") || len(pods.added) > 0 {
				t.Errorf("%d %s %v", code, body, pods.added)
			}
			w.mesh.Cut("aws", nil)
			time.Sleep(time.Minute) // virtual; the follower's next try
			if code, body := add(w); code != 200 {
				t.Errorf("%d %s", code, body)
			}
			w.mesh.Cut("aws", errors.New("out of reach"))
			if code, body := add(w); code != 200 {
				t.Errorf("once open: %d %s", code, body)
			}
		})
	})
	t.Run("the kernel refuses blackholes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.Pods = &fakePods{}
			routes := agent.NewFaulty(w.tables.Routes, func(op agent.FaultOp, _, _ int) agent.Fault {
				if op == agent.OpPut {
					return agent.Fault{Err: errors.New("no buffer space")}
				}
				return agent.Fault{}
			})
			w.tables.Routes = routes
			w.start()
			defer w.stop()
			if code, body := add(w); code != 503 || !strings.Contains(body, "blackhole routes") || !strings.Contains(body, "no buffer space") {
				t.Errorf("%d %s", code, body)
			}
			routes.SetSchedule(agent.NoFaults)
			if code, body := add(w); code != 200 {
				t.Errorf("%d %s", code, body)
			}
		})
	})
	t.Run("those of an agent before", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			w.stop()
			w.cfg.Pods = &fakePods{}
			w.mesh.Cut("aws", errors.New("out of reach"))
			w.start()
			defer w.stop()
			if code, body := add(w); code != 200 {
				t.Errorf("%d %s", code, body)
			}
		})
	})
}

// Whether a pod could be added now is what ADD waits for, and what the node itself
// lacks.
func TestPodsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, pods := newWorld(t), &fakePods{}
		w.cfg.Pods = pods
		w.mesh.Cut("aws", errors.New("out of reach"))
		w.start()
		defer w.stop()
		ask := func(code int, has string) {
			t.Helper()
			if got, body := w.request("GET", "/v1/pods/ready", nil); got != code || !strings.Contains(body, has) {
				t.Errorf("%d %s, want %d %q", got, body, code, has)
			}
		}
		ask(503, "which pod prefixes")
		w.mesh.Cut("aws", nil)
		time.Sleep(time.Minute) // virtual; the follower's next try
		ask(200, "Ready")
		pods.notReady = errors.New("no pod prefixes yet")
		ask(503, "no pod prefixes yet")
	})
}
