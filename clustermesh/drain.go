package clustermesh

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// MaxDrain is the longest time over which a cluster may be drained or return.
const MaxDrain = 24 * time.Hour

const (
	drainSteps = 20          // most steps in which a weight falls or rises
	drainStep  = time.Second // shortest of them: each has every service of the cluster merged again
)

// Left is how much of a cluster's weight is left at a time, in 1/65535: 0 = it
// is drained, ShareAll = nothing is drained (any more). It depends on the record
// and the time alone, so that it is the same on every node and after a restart.
// A clock that is behind sees the state before; one that is ahead, the next one:
// before the start is as at the start, so that what takes no time is done at once
// whatever the clock.
func (r *Drain) Left(now time.Time) uint16 {
	step, steps := r.step(now)
	from, to := int64(r.From), int64(0)
	if r.Back {
		to = ShareAll
	}
	return uint16(from + (to-from)*step/steps)
}

// Next is when Left changes for the next time after now; zero = never again.
func (r *Drain) Next(now time.Time) time.Time {
	step, steps := r.step(now)
	if step == steps {
		return time.Time{}
	}
	at := r.Start.Add(time.Duration((int64(r.Over)*(step+1) + steps - 1) / steps))
	return at
}

// Done is when it is complete.
func (r *Drain) Done() time.Time { return r.Start.Add(r.Over) }

// step is how many of how many steps are done.
func (r *Drain) step(now time.Time) (step, steps int64) {
	steps = min(max(int64(r.Over/drainStep), 1), drainSteps)
	gone := int64(max(now.Sub(r.Start), 0))
	if gone >= int64(r.Over) {
		return steps, steps
	}
	return min(gone*steps/int64(r.Over), steps-1), steps
}

// drainName is the name part of a drain's key.
func drainName(cluster string, service ServiceName) string {
	if service == (ServiceName{}) {
		return cluster
	}
	return cluster + "/" + service.String()
}

// ParseDrainName reads the name part of a drain's key.
func ParseDrainName(name string) (cluster string, service ServiceName, err error) {
	cluster, rest, some := strings.Cut(name, "/")
	if err := ValidateClusterName(cluster); err != nil {
		return "", ServiceName{}, err
	}
	if !some {
		return cluster, ServiceName{}, nil
	}
	if err := validateParts(rest, 2, "<cluster>/<namespace>/<name>"); err != nil {
		return "", ServiceName{}, err
	}
	return cluster, serviceName(rest), nil
}

func (d *decoder) decodeDrain(name string, plain []byte) (Record, error) {
	m := &d.pb.drain
	*m = pb.Drain{}
	if err := m.UnmarshalVT(plain); err != nil {
		return nil, err
	}
	var c checker
	c.text("by", m.By, maxText)
	if m.Over < 0 || m.Over > int64(MaxDrain) {
		c.fail("a drain over %v; it should be from 0 to %v", time.Duration(m.Over), MaxDrain)
	}
	if m.From > ShareAll {
		c.fail("a drain from %d; at most %d is all", m.From, ShareAll)
	}
	cluster, service, err := ParseDrainName(name)
	if err != nil {
		return nil, err
	}
	return &Drain{
		Cluster: cluster, Service: service, Start: Origin(m.Start).Time(), Over: time.Duration(m.Over),
		From: uint16(m.From), Back: m.Back, By: m.By, Origin: Origin(m.Origin),
	}, c.err
}

func drainMessage(r *Drain) (message, error) {
	if r.Start.IsZero() {
		return nil, errors.New("a drain without a start")
	}
	return r.Message(), nil
}

// Message is the record as it is encoded, without its name.
func (r *Drain) Message() *pb.Drain {
	return &pb.Drain{Start: int64(OriginAt(r.Start)), Over: int64(r.Over), From: uint32(r.From), Back: r.Back, By: r.By, Origin: int64(r.Origin)}
}

func (r *Drain) equal(b *Drain) bool {
	return r.Cluster == b.Cluster && r.Service == b.Service && r.Start.Equal(b.Start) && r.Over == b.Over && r.From == b.From && r.Back == b.Back && r.By == b.By
}

func (l *line) describeDrain(r *Drain) {
	word := "out"
	if r.Back {
		word = "back"
	}
	l.word(word)
	l.field("start", r.Start.UTC().Format(time.RFC3339Nano))
	l.field("over", r.Over.String())
	l.field("from", fmt.Sprint(r.From))
	l.text("by", r.By)
}
