package bpf

import "testing"

// BenchmarkPodPacket is pod.c alone: ns/packet beside the kernel's own cost of a
// test run ("empty" does next to nothing: ARP). "first" opens a flow each time, in
// place of a row that was closed.
func BenchmarkPodPacket(b *testing.B) {
	n := newPodNode(b)
	direct := segment{src: podA, dst: podB, proto: tcp, sport: 40001, dport: 8080, flags: syn}
	service := segment{src: podA, dst: vip, proto: tcp, sport: 40002, dport: 80, flags: syn}
	remote := segment{src: podA, dst: "10.2.1.9", proto: tcp, sport: 40003, dport: 8080, flags: syn}
	open := func(s segment) {
		n.run(b, n.code.from, s.bytes())
		s.flags = ack
		n.run(b, n.code.from, s.bytes())
	}
	for _, s := range []segment{direct, service, remote} {
		open(s)
		open(s.six())
	}
	data := func(s segment) []byte { s.flags, s.data = ack, "data"; return s.bytes() }
	first := func(s segment) []byte { s.flags = ack | rst; return s.bytes() }
	_ = first
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"empty", append(append(make([]byte, 12), 8, 6), make([]byte, 60)...)},
		{"v4-established", data(direct)},
		{"v6-established", data(direct.six())},
		{"v4-established-service", data(service)},
		{"v6-established-service", data(service.six())},
		{"v4-established-remote", data(remote)},
	} {
		b.Run(c.name, func(b *testing.B) {
			_, each, err := n.code.from.Benchmark(c.frame, 1_000_000, b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(each.Nanoseconds()), "ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}
