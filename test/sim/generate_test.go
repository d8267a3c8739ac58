package sim

import (
	"math/rand/v2"
	"time"
)

// generate makes the schedule of a seed. It is pure: the same seed gives the same
// schedule, whatever runs.
func generate(seed uint64) schedule {
	g := generator{r: rand.New(rand.NewPCG(seed, 5))}
	g.s = schedule{Seed: seed, Nodes: 2}
	rounds, steps := 2, 14
	switch {
	case seed%100 == 0: // a mesh of full size, for a short time
		g.s.Clusters, g.s.Agents, g.s.Replicas = maxClusters, 1, 1
		rounds, steps = 1, 20
	case seed%10 == 0:
		g.s.Clusters, g.s.Agents, g.s.Replicas = 5+g.r.IntN(4), 1, 1+g.r.IntN(2)
		rounds = 2
	default:
		g.s.Clusters, g.s.Agents, g.s.Replicas = 2+g.r.IntN(3), 1+g.r.IntN(2), 1+g.r.IntN(2)
	}
	for c := 1; c <= min(g.s.Clusters, 6); c++ {
		g.add("service", c, g.r.IntN(3), g.r.IntN(4), 1+g.r.IntN(3), 0)
		g.add("backends", c, g.s.Steps[len(g.s.Steps)-1].arg(1), 1+g.r.IntN(63), g.r.IntN(64))
	}
	for range rounds {
		g.round(steps)
	}
	return g.s
}

type generator struct {
	r  *rand.Rand
	s  schedule
	at time.Duration
}

// round is a time of changes and faults, and a rest.
func (g *generator) round(steps int) {
	n := steps/2 + g.r.IntN(steps)
	for range n {
		switch {
		case g.r.IntN(8) == 0:
			g.at += time.Duration(g.r.IntN(40000)) * time.Millisecond
		case g.r.IntN(3) == 0:
			g.at += time.Duration(g.r.IntN(20)) * time.Millisecond
		default:
			g.at += time.Duration(g.r.IntN(3000)) * time.Millisecond
		}
		if g.r.IntN(2) == 0 {
			g.change()
		} else {
			g.fault()
		}
	}
	g.add("rest")
}

func (g *generator) add(do string, args ...int) {
	g.s.Steps = append(g.s.Steps, step{At: g.at, Do: do, Args: args})
}

func (g *generator) cluster() int { return 1 + g.r.IntN(g.s.Clusters) }
func (g *generator) replica() int { return 1 + g.r.IntN(g.s.Replicas) }
func (g *generator) agent() int   { return 1 + g.r.IntN(max(g.s.Agents, 1)) }

// other is a cluster, and seldom all of them.
func (g *generator) other() int {
	if g.r.IntN(6) == 0 {
		return 0
	}
	return g.cluster()
}

func (g *generator) change() {
	c := g.cluster()
	switch g.r.IntN(10) {
	case 0:
		g.add("node", c, 3+g.r.IntN(2))
	case 1, 2, 3:
		g.add("pod", c, 1+g.r.IntN(3), 20+g.r.IntN(4), g.r.IntN(4))
	case 4, 5:
		kind := g.r.IntN(8)
		if kind > 3 {
			kind = 0
		}
		g.add("service", c, g.r.IntN(3), g.r.IntN(4), g.r.IntN(4), kind)
	case 6, 7, 8:
		g.add("backends", c, g.r.IntN(3), g.r.IntN(64), g.r.IntN(64))
	default:
		g.add("peer", c, g.cluster())
	}
}

func (g *generator) fault() {
	switch g.r.IntN(3) {
	case 0:
		g.networkFault()
	case 1:
		g.controlFault()
	default:
		g.agentFault()
	}
}

func (g *generator) networkFault() {
	a, b := g.other(), g.other()
	switch g.r.IntN(9) {
	case 0, 1:
		g.add("cut", a, b)
	case 2:
		g.add("cut", a, b)
		g.add("cut", b, a)
	case 3:
		g.add("lose", a, b, 5+g.r.IntN(60))
	case 4:
		g.add("late", a, b, 1+g.r.IntN(1500))
	case 5:
		g.add("flaky", a, b, 5+g.r.IntN(60))
	case 6:
		g.add("mend", a, b)
	case 7:
		g.add("island", g.cluster(), g.agent(), g.r.IntN(2))
	default:
		g.add("dark", g.cluster(), g.r.IntN(3))
	}
}

func (g *generator) controlFault() {
	c, v := g.cluster(), g.replica()
	switch g.r.IntN(15) {
	case 0:
		g.add("hangup", c)
	case 1, 2:
		g.add("compact", c)
	case 3, 4:
		g.add("server", c, v, []int{0, 1, 2, 3, 3}[g.r.IntN(5)])
	case 5, 6:
		g.add("stopped", c, v, 1000+g.r.IntN(25000))
	case 7:
		g.add("slow", c, v, g.r.IntN(2)*g.r.IntN(1500))
	case 8:
		g.add("unlead", c)
	case 9:
		g.add("faulty", c, v, g.r.IntN(2)*(5+g.r.IntN(40)))
	case 10:
		g.add("wipe", c)
	case 11:
		g.add("backup", c)
	case 12:
		g.add("restore", c)
	case 13:
		g.add("clock", c, v, g.r.IntN(7200)-3600)
	default:
		g.add("lie", c, g.other())
	}
}

func (g *generator) agentFault() {
	c, n := g.cluster(), g.agent()
	switch g.r.IntN(8) {
	case 0, 1:
		g.add("agent", c, n, []int{0, 1, 2, 3, 3}[g.r.IntN(5)])
	case 2, 3:
		g.add("die", c, n, g.r.IntN(12))
	case 4:
		g.add("reboot", c, n)
	case 5, 6:
		g.add("tables", c, n, g.r.IntN(3))
	default:
		if g.r.IntN(2) == 0 {
			g.add("stall", c, n, 500+g.r.IntN(15000))
		} else {
			g.add("drift", c, n, 1+g.r.IntN(4))
		}
	}
}
