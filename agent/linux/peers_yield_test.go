package linux

import (
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/tombolo-mesh/tombolo/agent"
)

// Of two nodes exactly one yields, whoever is asked.
func TestOneOfTwoYields(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "a"))
		b := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "b"))
		if a != b && yields(wgtypes.Key(a), agent.PeerKey(b)) == yields(wgtypes.Key(b), agent.PeerKey(a)) {
			t.Fatalf("both or none of %x and %x yield", a, b)
		}
	})
}
