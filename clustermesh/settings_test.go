package clustermesh

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSettings(t *testing.T) {
	check := func(what string, err error, want string) {
		t.Helper()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", what, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "", "3": "", "30%": "", "0": "", "100%": "", "65535": "",
		"101%": "above 100%", "65536": "above 65535", "-1": "neither", "+1": "neither", "%": "neither", "a": "neither", "3 %": "neither", "0.5": "neither",
		"99999999999": "neither", "\x1b": `"\x1b"`,
	} {
		_, err := ParseMinHealthy(s)
		check("min-healthy "+s, err, want)
	}
	for s, want := range map[string]string{
		"": "", " ": "", "gcp": "", "gcp, azure": "",
		"gcp,": "is empty", "gcp,gcp": "names gcp twice", "a,b,c": "at most 2", "Gcp": "not a DNS label",
	} {
		_, err := ParseFailover(s)
		check("failover "+s, err, want)
	}
	if names, _ := ParseFailover(" gcp ,azure"); !slices.Equal(names, []string{"gcp", "azure"}) {
		t.Errorf("failover is %q", names)
	}
	for s, want := range map[string]string{"": "", "local": "", "remote": "", "none": "", "Local": "allowed are local, remote, none"} {
		_, err := ParseAffinity(s)
		check("affinity "+s, err, want)
	}
	for s, want := range map[string]string{"": "", "0": "", "65535": "", "65536": "0 to 65535", "+1": "0 to 65535", "x": "0 to 65535"} {
		w, set, err := ParseWeight(s)
		check("weight "+s, err, want)
		if set != (s != "" && want == "") || s == "65535" && w != 65535 {
			t.Errorf("weight %s: %d, %v", s, w, set)
		}
	}
}

// TestShare: in range, monotone, exact at the ends, and no cliff.
func TestShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.IntRange(1, 500).Draw(t, "total")
		m := MinHealthy{Count: rapid.Uint32Range(0, 600).Draw(t, "count")}
		if rapid.Bool().Draw(t, "percent") {
			m = MinHealthy{Percent: rapid.Uint8Range(1, 100).Draw(t, "percent")}
		}
		if back, err := ParseMinHealthy(m.String()); err != nil || back != m {
			t.Fatalf("%+v came back as %+v: %v", m, back, err)
		}
		wanted := float64(m.Count)
		if m.Percent > 0 {
			wanted = float64(total) * float64(m.Percent) / 100
		}
		last := m.Share(0, total)
		if last != 0 {
			t.Fatal("nothing healthy, and a share")
		}
		for healthy := 1; healthy <= total; healthy++ {
			share := m.Share(healthy, total)
			if share < last {
				t.Fatalf("%d healthy have less than %d", healthy, healthy-1)
			}
			if step := float64(share - last); wanted > 1 && step > ShareAll/wanted+1 {
				t.Fatalf("a cliff of %v at %d", step, healthy)
			}
			if (float64(healthy) >= wanted) != (share == ShareAll) {
				t.Fatalf("%d of %d, wanted %v: share %d", healthy, total, wanted, share)
			}
			last = share
		}
	})
}
