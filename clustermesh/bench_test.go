package clustermesh

import (
	"runtime"
	"testing"
)

// BenchmarkList decodes, admits and inserts the 81,001 records of one large
// cluster; heap-MiB is what the view keeps.
func BenchmarkList(b *testing.B) {
	w := makeWorld(b, 1000, 5000, 20000, 50000)
	b.ReportAllocs()
	for b.Loop() {
		w.view(b)
	}
	b.ReportMetric(float64(len(w.events)), "records")
	b.ReportMetric(viewHeap(b, w), "heap-MiB")
}

// viewHeap is the live heap that one view adds, in MiB.
func viewHeap(tb testing.TB, w *world) float64 {
	var before, after runtime.MemStats
	w.view(tb) // warm pools
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	v := w.view(tb)
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(v)
	runtime.KeepAlive(w)
	return (float64(after.HeapAlloc) - float64(before.HeapAlloc)) / (1 << 20)
}

// BenchmarkMerge merges services that two clusters share.
func BenchmarkMerge(b *testing.B) {
	local, remote := makeWorld(b, 1000, 5000, 0, 0).view(b), makeWorld(b, 1000, 5000, 0, 0).view(b)
	in := MergeInput{Local: "aws", Views: map[string]*View{"aws": local, "gcp": remote}}
	var names []ServiceName
	for s := range local.Services() {
		names = append(names, s.Name)
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		in.Name = names[i%len(names)]
		i++
		if m := Merge(in); len(m.Ports) != 2 || len(m.Ports[0].Tiers) != 2 {
			b.Fatalf("unexpected merge: %+v", m)
		}
	}
	b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "merges/s")
}
