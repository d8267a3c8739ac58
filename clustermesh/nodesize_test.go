package clustermesh

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// With another CNI in charge a node's record lists its pods' addresses and is written
// anew when they change: what that costs a pod is known, and bounded. The table is in
// deploy/README.md.
func TestSizeOfChainedNode(t *testing.T) {
	for _, c := range []struct {
		name      string
		scattered bool
		dual      bool
		pods      []int
		perPod    int // bytes at most: address, length, and their framing
	}{
		{"one after the other", false, false, []int{10, 110, 250, 1000}, 11},
		{"scattered in a /16", true, false, []int{10, 110, 250, 1000}, 11},
		{"both families, scattered", true, true, []int{10, 110, 250, MaxPrefixes/2 - 1}, 36},
	} {
		bare := len(chainedNode(t, 0, false, c.dual))
		for _, n := range c.pods {
			got := len(chainedNode(t, n, c.scattered, c.dual))
			t.Logf("%-26s %5d pods: %6d bytes, %.1f a pod", c.name, n, got, float64(got-bare)/float64(n))
			if got > bare+n*c.perPod {
				t.Errorf("%s: %d pods take %d bytes beside %d", c.name, n, got, bare)
			}
		}
	}
}

func BenchmarkEncodeChainedNode(b *testing.B) {
	for _, n := range []int{10, 110, 250, 1000} {
		b.Run(fmt.Sprintf("%dpods", n), func(b *testing.B) {
			for b.Loop() {
				chainedNode(b, n, true, false)
			}
		})
	}
}

// chainedNode is the value of the record of a node with so many pods.
func chainedNode(tb testing.TB, pods int, scattered, dual bool) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	n := &Node{Name: "ip-10-0-17-23.eu-central-1.compute.internal", Number: 7, WireGuardKey: [32]byte{1, 2, 3}, WireGuardEndpoint: "10.0.17.23:51820",
		UnderlayAddresses: []netip.Addr{netip.MustParseAddr("10.0.17.23")}, TunnelAddresses: []netip.Addr{netip.MustParseAddr("10.255.0.7")}, Zone: "eu-central-1a"}
	for i := range pods {
		low := i + 2
		if scattered {
			low = random.IntN(1 << 16)
		}
		n.PodPrefixes = append(n.PodPrefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(low >> 8), byte(low)}), 32))
		if dual {
			a := [16]byte{0xfd, 0x10, 15: byte(low)}
			for j := 8; j < 15; j++ {
				a[j] = byte(random.IntN(256))
			}
			n.PodPrefixes = append(n.PodPrefixes, netip.PrefixFrom(netip.AddrFrom16(a), 128))
		}
	}
	slices.SortFunc(n.PodPrefixes, netip.Prefix.Compare)
	n.PodPrefixes = append(slices.Compact(n.PodPrefixes), netip.MustParsePrefix("10.255.0.7/32"))
	value, err := Encode(n)
	if err != nil {
		tb.Fatal(err)
	}
	return value
}
