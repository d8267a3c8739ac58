package sim

import "slices"

// shrink makes a schedule smaller as long as fails says that what is left still
// violates the same invariant: fewer steps, in pieces at first and then one by
// one, then a smaller world. budget is how many runs it may take.
func shrink(s schedule, fails func(schedule) bool, budget int) schedule {
	try := func(smaller schedule) bool {
		if budget <= 0 {
			return false
		}
		budget--
		return fails(smaller)
	}
	for piece := (len(s.Steps) + 1) / 2; piece >= 1; {
		shorter := false
		for at := 0; at < len(s.Steps); {
			smaller := s
			smaller.Steps = slices.Delete(slices.Clone(s.Steps), at, min(at+piece, len(s.Steps)))
			if try(smaller) {
				s, shorter = smaller, true
			} else {
				at += piece
			}
		}
		if piece > 1 {
			piece = (piece + 1) / 2
		} else if !shorter {
			break
		}
	}
	for _, less := range []func(*schedule){
		func(s *schedule) { s.Clusters = 2 }, func(s *schedule) { s.Clusters = s.highest() }, func(s *schedule) { s.Clusters-- },
		func(s *schedule) { s.Replicas = 1 }, func(s *schedule) { s.Agents = 1 }, func(s *schedule) { s.Nodes-- },
	} {
		smaller := s
		less(&smaller)
		smaller.Agents = min(smaller.Agents, smaller.Nodes)
		if smaller.smaller(s) && try(smaller) {
			s = smaller
		}
	}
	return s
}

// highest is the greatest first argument: nothing is done to clusters above it.
func (s schedule) highest() int {
	n := 1
	for _, st := range s.Steps {
		n = max(n, st.arg(0))
	}
	return n
}

// smaller says that the world can be made, and is not that of o.
func (s schedule) smaller(o schedule) bool {
	return s.Clusters >= 1 && s.Nodes >= 1 && s.Agents >= 1 && s.Clusters <= o.Clusters &&
		(s.Clusters != o.Clusters || s.Replicas != o.Replicas || s.Agents != o.Agents || s.Nodes != o.Nodes)
}
