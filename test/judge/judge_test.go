package judge

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tombolo-mesh/tombolo/agent/policy"
	"github.com/tombolo-mesh/tombolo/clustermesh"
)

type ask struct {
	subject  policy.Subject
	dir      policy.Direction
	identity clustermesh.Identity
	peer     netip.Addr
	proto    clustermesh.Protocol
	port     uint16
}

// random is seeded anew each run; TOMBOLO_JUDGE_SEED repeats one.
func random(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("TOMBOLO_JUDGE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TOMBOLO_JUDGE_SEED=%#x", seed)
	return rand.New(rand.NewPCG(seed, 7))
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

func sortedLabels(m map[string]string) []clustermesh.Label {
	out := []clustermesh.Label{}
	for k, v := range m {
		out = append(out, clustermesh.Label{Key: k, Value: v})
	}
	slices.SortFunc(out, func(a, b clustermesh.Label) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// noProblems: what is generated is well made.
func noProblems(t *testing.T, o *ours) {
	t.Helper()
	for _, p := range o.e.Problems() {
		if !strings.Contains(p.Why, "domainNames") {
			t.Fatalf("%+v\n%s", p, o.w.text())
		}
	}
}

const (
	worlds  = 250
	queries = 120 // of each world
)

// NetworkPolicy, judged by kube-network-policies and by the twin.
func TestNetworkPolicyAgainstKube(t *testing.T) {
	r, k := random(t), newKube(t)
	var count, twins tally
	for range worlds {
		w := newWorld(r, options{clusters: 1, np: 1 + r.IntN(7)})
		o := newOurs(t, w, r)
		noProblems(t, o)
		k.take(t, w)
		o.compare(t, generator{Rand: r}, queries, k.allows, &count)
		o.compare(t, generator{Rand: r}, queries/4, twin{w}.allows, &twins)
	}
	count.check(t, 20000)
	twins.check(t, 5000)
}

// Tiers, judged by kube-network-policies as far as the API before had them.
func TestTiersAgainstKube(t *testing.T) {
	r, k := random(t), newKube(t)
	var count tally
	for range worlds {
		w := newWorld(r, options{clusters: 1, np: r.IntN(4), bothTypes: true, cnp: 1 + r.IntN(4), simple: true})
		o := newOurs(t, w, r)
		noProblems(t, o)
		k.take(t, w)
		o.compare(t, generator{Rand: r}, queries, k.allows, &count)
	}
	count.check(t, 20000)
}

// All of it, in one cluster and across several, judged by the twin.
func TestAgainstTwin(t *testing.T) {
	r := random(t)
	var count tally
	for i := range 2 * worlds {
		w := newWorld(r, options{clusters: 1 + i%3, np: r.IntN(6), cnp: r.IntN(6), allClusters: r.IntN(4) == 0})
		o := newOurs(t, w, r)
		noProblems(t, o)
		o.compare(t, generator{Rand: r, o: options{clusters: 1 + i%3}}, queries, twin{w}.allows, &count)
	}
	count.check(t, 20000)
}
