package bpf

import (
	"strings"
	"testing"
)

// Where another CNI is in charge of the stack, what a pod sends to another cluster goes
// into the tunnel past it, unless it does not fit: then the stack tells the pod.
func TestPodIntoTunnel(t *testing.T) {
	n := newPodNode(t)
	s := newSpace(t)
	s.tun("tunnel0")
	tunnel := s.link("tunnel0")
	if err := s.nl.LinkSetMTU(tunnel, 1280); err != nil {
		t.Fatal(err)
	}
	n.service(t, vip, 443, tcp, 9, "10.2.1.9", 8443)
	small, large := strings.Repeat("x", 100), strings.Repeat("x", 1300)
	exact4, exact6 := strings.Repeat("x", 1280-20-20), strings.Repeat("x", 1280-40-20)
	to := func(dst string, port int, data string) segment {
		return segment{src: podA, dst: dst, proto: tcp, sport: 40000 + len(data), dport: port, flags: syn, data: data}
	}
	for _, c := range []struct {
		name    string
		flags   uint32
		device  int
		s       segment
		verdict uint32
	}{
		{"not chained", 0, tunnel.Attrs().Index, to("10.2.1.9", 80, small), verdictNext},
		{"no tunnel", Chained, 0, to("10.2.1.9", 80, small), verdictNext},
		{"to another cluster", Chained, tunnel.Attrs().Index, to("10.2.1.9", 80, small), verdictRedirect},
		{"just fits", Chained, tunnel.Attrs().Index, to("10.2.1.9", 80, exact4), verdictRedirect},
		{"just does not", Chained, tunnel.Attrs().Index, to("10.2.1.9", 80, exact4+"x"), verdictNext},
		{"too large", Chained, tunnel.Attrs().Index, to("10.2.1.9", 80, large), verdictNext},
		{"a service there", Chained, tunnel.Attrs().Index, to(vip, 443, small), verdictRedirect},
		{"to the host", Chained, tunnel.Attrs().Index, to("10.1.1.1", 80, small), verdictNext},
		{"to the world", Chained, tunnel.Attrs().Index, to("192.0.2.7", 80, small), verdictNext},
	} {
		t.Run(c.name, func(t *testing.T) {
			put(t, n.Config, uint32(0), Config{Cluster: 1, Node: 1, Flags: c.flags, TunnelMtu: 1280})
			put(t, n.Devices, uint32(rowsTmbDeviceTMB_DEVICE_TUNNEL), uint32(c.device))
			for _, f := range []segment{c.s, c.s.six()} {
				if f.src == six(podA) {
					f.data = strings.Replace(f.data, exact4, exact6, 1)
				}
				s.in(func() error {
					if verdict, _ := n.run(t, n.code.from, f.bytes()); verdict != c.verdict {
						t.Errorf("%s → %s, %d bytes: verdict %d, want %d", f.src, f.dst, len(f.bytes()), int32(verdict), int32(c.verdict))
					}
					return nil
				})
			}
		})
	}
}
