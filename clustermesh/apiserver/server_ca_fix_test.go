package apiserver

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// What is to be done depends on why a CA cannot be had.
func TestFixOfAnAwaitedCA(t *testing.T) {
	other := &UnusableCA{Err: errors.New("it is of another cluster"), Fix: "name another"}
	for _, c := range []struct {
		err      error
		supplied bool
		want     string
	}{
		{errors.New("connection refused"), false, "see that the Kubernetes API answers"},
		{errors.New("connection refused"), true, "see that the Kubernetes API answers"},
		{fmt.Errorf("%w: Secret ca does not exist", ErrNoCA), true, "have its issuer make it (cert-manager"},
		{other, false, "name another; this server goes on by itself then"},
		{fmt.Errorf("read: %w", other), true, "name another; this server goes on by itself then"},
	} {
		k := &keptCA{server: &server{cfg: Config{Cluster: "aws"}}, keeper: &fakeKeeper{supplied: c.supplied}}
		if p := k.awaited(c.err); !strings.HasPrefix(p.Fix, c.want) || p.Why != c.err.Error() {
			t.Errorf("%v, supplied %v: %s", c.err, c.supplied, p.Text())
		}
	}
}
