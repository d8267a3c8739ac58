package clustermesh

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxFailover is how many clusters a failover list may name: a service has four
// tiers, and two of them are the client's own cluster and the rest.
const MaxFailover = 2

// MinHealthy is how many healthy backends a tier needs to keep all traffic.
// The zero value asks for nothing: a tier keeps all as long as it has any.
type MinHealthy struct {
	Count   uint32 // backends; or
	Percent uint8  // of the tier's backends, 1–100
}

// ParseMinHealthy reads the annotation: "" (nothing), a count ("3") or a
// percentage ("30%").
func ParseMinHealthy(s string) (MinHealthy, error) {
	if s == "" {
		return MinHealthy{}, nil
	}
	text, percent := strings.CutSuffix(s, "%")
	n, err := strconv.ParseUint(text, 10, 32)
	switch {
	case err != nil || text[0] == '+':
		return MinHealthy{}, fmt.Errorf("min-healthy %s is neither a count (3) nor a percentage (30%%)", quote(s))
	case percent && n > 100:
		return MinHealthy{}, fmt.Errorf("min-healthy %s is above 100%%", quote(s))
	case !percent && n > 65535:
		return MinHealthy{}, fmt.Errorf("min-healthy %s is above 65535 backends", quote(s))
	case percent:
		return MinHealthy{Percent: uint8(n)}, nil
	}
	return MinHealthy{Count: uint32(n)}, nil
}

// String is what ParseMinHealthy reads.
func (m MinHealthy) String() string {
	switch {
	case m.Percent > 0:
		return strconv.Itoa(int(m.Percent)) + "%"
	case m.Count > 0:
		return strconv.FormatUint(uint64(m.Count), 10)
	}
	return ""
}

// ShareAll is a Share that keeps everything.
const ShareAll = 65535

// Share is how much of the traffic that reaches a tier stays in it, in 1/65535,
// when healthy of total backends are: all of it from the wanted number up, and
// below that in proportion,
//
//	share = 65535 × healthy / wanted, rounded down
//	wanted = Count, or ⌈total × Percent / 100⌉
//
// so that losing one backend moves no more than one backend's part of the
// traffic: no cliff. A tier without healthy backends keeps nothing.
func (m MinHealthy) Share(healthy, total int) uint16 {
	if healthy <= 0 {
		return 0
	}
	wanted := int64(m.Count)
	if m.Percent > 0 {
		wanted = (int64(total)*int64(m.Percent) + 99) / 100
	}
	if int64(healthy) >= wanted {
		return ShareAll
	}
	return uint16(ShareAll * int64(healthy) / wanted)
}

// ParseFailover reads a comma-separated list of cluster names, in order of
// preference, at most MaxFailover, each once.
func ParseFailover(s string) ([]string, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	var names []string
	for part := range strings.SplitSeq(s, ",") {
		name := strings.TrimSpace(part)
		if err := ValidateClusterName(name); err != nil {
			return nil, fmt.Errorf("failover %s: %w", quote(s), err)
		}
		if slices.Contains(names, name) {
			return nil, fmt.Errorf("failover %s names %s twice", quote(s), name)
		}
		names = append(names, name)
	}
	return names, checkFailover(names)
}

func checkFailover(names []string) error {
	if len(names) > MaxFailover {
		return fmt.Errorf("failover names %d clusters; at most %d can be ordered, all others follow as the rest", len(names), MaxFailover)
	}
	return nil
}

// ParseAffinity reads the annotation: local, remote or none; "" is unset.
func ParseAffinity(s string) (Affinity, error) {
	switch a := Affinity(s); a {
	case AffinityUnset, AffinityLocal, AffinityRemote, AffinityNone:
		return a, nil
	}
	return AffinityUnset, fmt.Errorf("affinity %s is unknown; allowed are local, remote, none", quote(s))
}

// ParseWeight reads the annotation: 0–65535. The boolean says whether it was set.
func ParseWeight(s string) (weight uint16, set bool, err error) {
	if s == "" {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s[0] == '+' {
		return 0, false, errors.New("weight " + quote(s) + " is not a number from 0 to 65535")
	}
	return uint16(n), true, nil
}
