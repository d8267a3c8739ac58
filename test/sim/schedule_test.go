package sim

import (
	"bufio"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// schedule is everything that happens in a run: the world it begins with, and what
// is done to it when. It is data, made by generate before anything runs, so that it
// can be printed, kept in a file, run again, and made smaller. A step that makes no
// sense where it comes does nothing; so any part of a schedule is a schedule.
type schedule struct {
	Seed     uint64 // of what is drawn while it runs: delays, losses
	Clusters int
	Nodes    int // of each cluster at the start
	Agents   int // on the first nodes of each cluster
	Replicas int // mesh API servers of each cluster
	Plant    string
	Steps    []step
}

// step is one thing that is done. Args are numbers, all of them: cluster 1 is the
// first, and 0 stands for all where the verb has a meaning for that.
type step struct {
	At   time.Duration // since the start, without the time that resting takes
	Do   string
	Args []int
}

func (s step) String() string {
	text := fmt.Sprintf("%8.3fs %s", s.At.Seconds(), s.Do)
	for _, a := range s.Args {
		text += " " + strconv.Itoa(a)
	}
	return text
}

// arg is argument i; 0 if there is none.
func (s step) arg(i int) int {
	if i < len(s.Args) {
		return s.Args[i]
	}
	return 0
}

// String can be read by parseSchedule.
func (s schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "world seed=%d clusters=%d nodes=%d agents=%d replicas=%d", s.Seed, s.Clusters, s.Nodes, s.Agents, s.Replicas)
	if s.Plant != "" {
		fmt.Fprintf(&b, " plant=%s", s.Plant)
	}
	b.WriteByte('\n')
	for _, st := range s.Steps {
		fmt.Fprintln(&b, st)
	}
	return b.String()
}

// parseSchedule reads a schedule. Lines that begin with # say why it is there.
func parseSchedule(text string) (schedule, error) {
	s := schedule{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		var err error
		if fields[0] == "world" {
			err = s.parseWorld(fields[1:])
		} else {
			err = s.parseStep(fields)
		}
		if err != nil {
			return s, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if s.Clusters < 1 || s.Clusters > maxClusters || s.Nodes < 1 || s.Nodes > maxNodes || s.Agents < 0 || s.Agents > s.Nodes || s.Replicas < 1 || s.Replicas > 3 {
		return s, fmt.Errorf("no world to run in: want 1–%d clusters, 1–%d nodes of each, at most as many agents, 1–3 replicas", maxClusters, maxNodes)
	}
	slices.SortStableFunc(s.Steps, func(a, b step) int { return cmp.Compare(a.At, b.At) })
	return s, lines.Err()
}

const (
	maxClusters = 20
	maxNodes    = 4
)

func (s *schedule) parseWorld(fields []string) error {
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		if name == "plant" {
			s.Plant = value
			continue
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%s: want name=number", f)
		}
		switch name {
		case "seed":
			s.Seed = n
		case "clusters":
			s.Clusters = int(n)
		case "nodes":
			s.Nodes = int(n)
		case "agents":
			s.Agents = int(n)
		case "replicas":
			s.Replicas = int(n)
		default:
			return fmt.Errorf("%s: the world has no such thing", name)
		}
	}
	return nil
}

func (s *schedule) parseStep(fields []string) error {
	at, err := time.ParseDuration(fields[0])
	if err != nil || len(fields) < 2 {
		return fmt.Errorf("%q: want a time, a verb and numbers", strings.Join(fields, " "))
	}
	if verbs[fields[1]].do == nil {
		return fmt.Errorf("%q is no verb", fields[1])
	}
	st := step{At: at, Do: fields[1]}
	for _, f := range fields[2:] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return fmt.Errorf("%s: %q is no number", st.Do, f)
		}
		st.Args = append(st.Args, n)
	}
	s.Steps = append(s.Steps, st)
	return nil
}
