package bpf

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkPodPacket is pod.c alone: ns/packet beside the kernel's own cost of a
// test run ("empty" does next to nothing: ARP).
//
// A test run gives the program's output to it again. So the service's flow is
// changed to translate to what the packet has already: all is rewritten, nothing
// changes. "first" is the median of single runs, each of a new flow.
func BenchmarkPodPacket(b *testing.B) {
	n := newPodNode(b)
	n.isolate(b, 1<<20|50) // b has a policy that a passes
	direct := segment{src: podA, dst: podB, proto: tcp, sport: 40001, dport: 8080, flags: syn}
	service := segment{src: podA, dst: vip, proto: tcp, sport: 40002, dport: 80, flags: syn}
	remote := segment{src: podA, dst: "10.2.1.9", proto: tcp, sport: 40003, dport: 8080, flags: syn}
	for _, s := range []segment{direct, direct.six(), service, service.six(), remote} {
		n.run(b, n.code.from, s.bytes())
	}
	var key FlowKey
	var row Flow
	for it := n.Flows.Iterate(); it.Next(&key, &row); {
		if row.Flags&uint32(rowsTmbFlowFlagsTMB_FLOW_SERVICE) == 0 {
			continue
		}
		row.ToDst, row.DstPort = addr(vip), port(80)
		if key.A.B[0] == 0xfd || key.B.B[0] == 0xfd {
			row.ToDst = addr(six(vip))
		}
		put(b, n.Flows, key, row)
	}
	for _, a := range []string{vip, six(vip)} { // delivered like a pod
		put(b, n.Endpoints, addr(a), Endpoint{Ifindex: testIfindex})
	}
	data := func(s segment) []byte { s.flags, s.data = ack, "data"; return s.bytes() }
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
	if err := n.Endpoints.Delete(addr(vip)); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		s    segment
	}{{"v4-first", direct}, {"v6-first", direct.six()}, {"v4-first-service", service}, {"empty-once", segment{}}} {
		b.Run(c.name, func(b *testing.B) {
			var times []time.Duration
			for i := range 3000 {
				s := c.s
				s.sport = 1024 + i
				f := append(append(make([]byte, 12), 8, 6), make([]byte, 60)...)
				if c.s.proto != 0 {
					f = s.bytes()
				}
				verdict, each, err := n.code.from.Benchmark(f, 1, nil)
				if err != nil || verdict == verdictShot {
					b.Fatal(verdict, err)
				}
				times = append(times, each)
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Nanoseconds()), "ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}
