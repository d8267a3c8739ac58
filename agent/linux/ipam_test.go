package linux

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestPoolOrder(t *testing.T) {
	tunnel := netip.MustParseAddr("10.0.0.1")
	p := newPool(netip.MustParsePrefix("10.0.0.0/29"), []netip.Addr{tunnel})
	var got []string
	for i := range 5 {
		a, err := p.take(fmt.Sprint("pod", i), epoch)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String())
	}
	if want := "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if _, err := p.take("more", epoch); err == nil || !strings.Contains(err.Error(), "no free address in 10.0.0.0/29: 5 in use") {
		t.Errorf("full pool: %v", err)
	}
	p.release(netip.MustParseAddr("10.0.0.4"), "pod2", epoch)
	p.release(netip.MustParseAddr("10.0.0.3"), "pod1", epoch.Add(time.Second))
	p.release(netip.MustParseAddr("10.0.0.5"), "pod9", epoch) // not its own
	if _, err := p.take("more", epoch.Add(9*time.Minute)); err == nil || !strings.Contains(err.Error(), "2026-01-01T00:10:00Z") {
		t.Errorf("addresses at rest: %v", err)
	}
	if a, err := p.take("more", epoch.Add(quarantine)); err != nil || a.String() != "10.0.0.4" {
		t.Errorf("least recently freed: %v %v", a, err)
	}
	if a, err := p.take("pod1", epoch.Add(2*time.Minute)); err != nil || a.String() != "10.0.0.3" {
		t.Errorf("its own address: %v %v", a, err)
	}
}

func TestPoolEnds(t *testing.T) {
	for _, c := range []struct {
		prefix string
		want   int // addresses without the tunnel's
	}{{"10.0.0.0/24", 253}, {"10.0.0.0/30", 1}, {"10.0.0.128/25", 125}, {"10.0.0.0/8", maxPool - 2}, {"fd00::/64", maxPool - 2}, {"fd00::/126", 2}, {"10.0.0.1/32", 0}} {
		prefix := netip.MustParsePrefix(c.prefix)
		p := newPool(prefix, []netip.Addr{prefix.Masked().Addr().Next()})
		n := 0
		for ; ; n++ {
			a, err := p.take(fmt.Sprint(n), epoch)
			if err != nil {
				break
			}
			if !prefix.Contains(a) {
				t.Fatalf("%s: gave %s", c.prefix, a)
			}
		}
		if n != c.want {
			t.Errorf("%s: %d addresses, want %d", c.prefix, n, c.want)
		}
	}
}

// The pool against its promises, in any history and across restarts: nobody
// shares an address, nothing reserved or outside is given, nobody but its last
// owner gets an address within the quarantine, the longest rested comes first.
func TestPoolProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/28", "fd00::/124"}).Draw(t, "prefix"))
		reserved := []netip.Addr{prefix.Addr().Next()}
		p := newPool(prefix, reserved)
		now := epoch
		type end struct {
			owner string
			at    time.Time
		}
		owners, ends := map[string]netip.Addr{}, map[netip.Addr]end{}
		holds := func(a netip.Addr) bool {
			for _, b := range owners {
				if a == b {
					return true
				}
			}
			return false
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			owner := fmt.Sprint("pod", rapid.IntRange(0, 20).Draw(t, "owner"))
			switch rapid.SampledFrom([]string{"take", "take", "release", "wait", "restart"}).Draw(t, "step") {
			case "take":
				if _, has := owners[owner]; has {
					continue
				}
				a, err := p.take(owner, now)
				if err != nil {
					for b, e := range ends {
						if !holds(b) && now.Sub(e.at) >= quarantine {
							t.Fatalf("refused although %s has rested since %s", b, e.at)
						}
					}
					continue
				}
				if holds(a) || slices.Contains(reserved, a) || !prefix.Contains(a) || a == prefix.Addr() {
					t.Fatalf("gave %s, which is in use or not to be given", a)
				}
				if e, was := ends[a]; was && e.owner != owner {
					if now.Sub(e.at) < quarantine {
						t.Fatalf("gave %s to %s %s after %s left it", a, owner, now.Sub(e.at), e.owner)
					}
					for b, f := range ends {
						if !holds(b) && f.at.Before(e.at) {
							t.Fatalf("gave %s (free since %s) before %s (since %s)", a, e.at, b, f.at)
						}
					}
				}
				owners[owner] = a
				delete(ends, a)
			case "release":
				if a, has := owners[owner]; has {
					p.release(a, owner, now)
					delete(owners, owner)
					ends[a] = end{owner, now}
				}
			case "wait":
				now = now.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second)
			case "restart":
				freed := p.freed
				p = newPool(prefix, reserved)
				for o, a := range owners {
					if !p.claim(a, o) {
						t.Fatalf("%s does not get %s back", o, a)
					}
				}
				for _, f := range freed {
					p.rest(f, now)
				}
			}
		}
	})
}
