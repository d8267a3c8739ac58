package script

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tombolo-mesh/tombolo/agent"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// told is what an agent tells those beside the kernel: who resets sockets and who
// answers at health check ports.
type told struct {
	mu     sync.Mutex
	resets []string
	health map[clustermesh.ServiceName]agent.HealthPort
}

func (t *told) Reset(_ context.Context, backends []agent.BackendKey) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range backends {
		t.resets = append(t.resets, b.String()+"\n")
	}
	return nil
}

func (t *told) Set(changes []agent.HealthPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.health == nil {
		t.health = map[clustermesh.ServiceName]agent.HealthPort{}
	}
	for _, p := range changes {
		if t.health[p.Service] = p; p.Port == 0 {
			delete(t.health, p.Service)
		}
	}
}

func (*told) Problems() []clustermesh.Problem { return nil }

// takeResets are the backends since the last call, sorted. The agent tells of
// them after their rows have left: whoever sees the rows gone may be early.
func (t *told) takeResets() (string, error) {
	var out []string
	err := eventually(func() error {
		t.mu.Lock()
		defer t.mu.Unlock()
		if out = t.resets; len(out) == 0 {
			return errors.New("nothing was reset")
		}
		t.resets = nil
		return nil
	})
	slices.Sort(out)
	return strings.Join(out, ""), err
}

func cmdResets(w *world, ts *testscript.TestScript, args []string) error {
	n, err := w.node(args[0])
	if err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	time.Sleep(time.Second) // calls that reset are apart
	if err := w.settle(); err != nil {
		return err
	}
	text, err := n.told.takeResets()
	fmt.Fprint(ts.Stdout(), text)
	return err
}

func cmdHealth(w *world, ts *testscript.TestScript, args []string) error {
	n, err := w.node(args[0])
	if err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	n.told.mu.Lock()
	defer n.told.mu.Unlock()
	fmt.Fprint(ts.Stdout(), "") // what was printed before is no longer meant
	byName := func(a, b clustermesh.ServiceName) int { return strings.Compare(a.String(), b.String()) }
	for _, name := range slices.SortedFunc(maps.Keys(n.told.health), byName) {
		p := n.told.health[name]
		fmt.Fprintf(ts.Stdout(), "%d %s endpoints=%d\n", p.Port, name, p.Endpoints)
	}
	return nil
}
