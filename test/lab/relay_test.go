package lab

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	pingSeq = regexp.MustCompile(`icmp_seq=(\d+)`)
	pingRTT = regexp.MustCompile(`= [\d.]+/([\d.]+)/`)
)

// overtakes counts answers that came after one with a greater number.
func overtakes(out string) (n int) {
	last := 0
	for _, m := range pingSeq.FindAllStringSubmatch(out, -1) {
		seq, _ := strconv.Atoi(m[1])
		if seq < last {
			n++
		}
		last = max(last, seq)
	}
	return n
}

func meanRTT(t *testing.T, out string) float64 {
	t.Helper()
	m := pingRTT.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("ping without figures: %s", out)
	}
	ms, _ := strconv.ParseFloat(m[1], 64)
	return ms
}

// Packets between clusters wait, and overtake each other under jitter; packets
// within a cluster do not; healing brings the old times back.
func TestDelay(t *testing.T) {
	l := testLab(t, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	a := must(l.AddCluster("a", 2))(t)
	b := must(l.AddCluster("b", 1))(t)
	_, six := underlayPrefixes(b.ID)
	for _, family := range []struct{ name, target string }{
		{"IPv4", b.Nodes[0].Underlay().String()},
		{"IPv6", hostAddr(six, 11).String()},
	} {
		t.Run(family.name, func(t *testing.T) {
			ping := func(target string, count int) string {
				out, err := a.Nodes[0].host.run(ctx, nil, "", "ping", "-n", "-c", fmt.Sprint(count), "-i", "0.005", "-W", "2", target)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			direct := ping(family.target, 20)
			heal := must(l.Delay(20*time.Millisecond, 0, 1))(t)
			even, within := ping(family.target, 40), ping(a.Nodes[1].Underlay().String(), 20)
			noError(t, heal())
			heal = must(l.Delay(10*time.Millisecond, 40*time.Millisecond, 7))(t)
			uneven := ping(family.target, 100)
			noError(t, heal())
			after := ping(family.target, 20)

			d, e, w, u, p := meanRTT(t, direct), meanRTT(t, even), meanRTT(t, within), meanRTT(t, uneven), meanRTT(t, after)
			t.Logf("mean round trip: direct %.2f ms, 20 ms each way %.2f, within the cluster meanwhile %.2f, 10–50 ms each way %.2f (%d overtaken), healed %.2f",
				d, e, w, u, overtakes(uneven), p)
			if e < 40 || e < 10*d {
				t.Errorf("20 ms each way: round trips of %.2f ms, %.2f without", e, d)
			}
			if w > e/4 || p > e/4 {
				t.Errorf("delayed what should not be: %.2f ms within the cluster, %.2f after healing", w, p)
			}
			if u < 30 || overtakes(uneven) == 0 {
				t.Errorf("jitter: %.2f ms, %d overtaken", u, overtakes(uneven))
			}
			if overtakes(direct)+overtakes(even)+overtakes(after) > 0 {
				t.Error("packets overtook each other without jitter")
			}
			if strings.Contains(uneven, "DUP!") {
				t.Error("the relay doubled packets")
			}
		})
	}
}

// One delay at a time; ended twice is fine.
func TestDelayTwice(t *testing.T) {
	l := testLab(t, Options{})
	must(l.AddCluster("a", 1))(t)
	must(l.AddCluster("b", 1))(t)
	heal := must(l.Delay(time.Millisecond, 0, 1))(t)
	if _, err := l.Delay(time.Millisecond, 0, 1); err == nil || !strings.Contains(err.Error(), "one delay at a time") {
		t.Errorf("a second delay: %v", err)
	}
	noError(t, heal())
	noError(t, heal())
	noError(t, must(l.Delay(time.Millisecond, 0, 1))(t)())
}
