package lab

import (
	"context"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Janitor()
	Workload()
	// A thread that starts a process in a cgroup holds its turn while the kernel
	// waits for others; a relay must not wait with it.
	runtime.GOMAXPROCS(max(8, runtime.GOMAXPROCS(0)))
	code := m.Run()
	for _, f := range atExit {
		f()
	}
	os.Exit(code)
}

// testLab makes a lab that is swept when the test ends.
func testLab(t *testing.T, opts Options) *Lab {
	t.Helper()
	if err := Prerequisites(); err != nil {
		t.Skipf("needs root: %v", err)
	}
	l, err := New(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
		if left := l.Leftovers(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return l
}

// Hosts of two clusters reach each other through the underlay; faults and
// pulled cables do what they say.
func TestUnderlay(t *testing.T) {
	l := testLab(t, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	a, err := l.AddCluster("a", 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.AddCluster("b", 1)
	if err != nil {
		t.Fatal(err)
	}
	target := b.Nodes[0].Underlay().String()
	ping := func(count string) string {
		out, _ := a.Nodes[0].host.run(ctx, nil, "", "ping", "-n", "-q", "-c", count, "-i", "0.01", "-W", "0.3", target)
		return out
	}
	if out := ping("2"); !strings.Contains(out, " 0% packet loss") {
		t.Fatalf("no way through a fresh underlay: %s", out)
	}
	heal, err := l.Partition("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	if out := ping("2"); !strings.Contains(out, "100% packet loss") {
		t.Errorf("a partition let packets through: %s", out)
	}
	if err := heal(); err != nil {
		t.Fatal(err)
	}
	if heal, err = l.Inject(Fault{From: "a", Duplicate: 1}); err != nil {
		t.Fatal(err)
	}
	if out := ping("3"); !strings.Contains(out, "+2 duplicates") {
		t.Errorf("no duplicates: %s", out)
	}
	if err := heal(); err != nil {
		t.Fatal(err)
	}
	if heal, err = l.Inject(Fault{From: "a", To: "b", Proto: 17, Port: 51871, Loss: 1}); err != nil {
		t.Fatal(err)
	}
	if out := ping("2"); !strings.Contains(out, " 0% packet loss") {
		t.Errorf("a fault on one port hit something else: %s", out)
	}
	if err := heal(); err != nil {
		t.Fatal(err)
	}
	if err := b.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if out := ping("1"); !strings.Contains(out, "100% packet loss") {
		t.Errorf("a machine without power answered: %s", out)
	}
}

func TestCaptureSeesMarks(t *testing.T) {
	l := testLab(t, Options{})
	a, err := l.AddCluster("a", 2)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.AddCluster("b", 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Capture("SECRETMARK")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	marked := func() int64 { _, n, _ := c.Count(); return n }
	for _, way := range []struct {
		what  string
		to    *Node
		count func() int64
	}{{"within a cluster", a.Nodes[1], c.Inside}, {"between clusters", b.Nodes[0], marked}} {
		if marked() != 0 {
			t.Fatalf("a mark between clusters before any was sent")
		}
		// 53 45 … is SECRETMARK: ping fills its payload with it.
		if _, err := a.Nodes[0].host.run(ctx, nil, "", "ping", "-n", "-c", "1", "-p", "5345435245544d41524b", way.to.Underlay().String()); err != nil {
			t.Fatal(err)
		}
		if err := await(ctx, "capture sees the mark "+way.what, nil, func() error {
			if way.count() == 0 {
				return os.ErrNotExist
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// A lab whose owner is killed leaves nothing: the janitor sweeps.
func TestSweepRefusesOtherFolders(t *testing.T) {
	if err := Sweep("", "/tmp/tombolo-x"); err == nil {
		t.Error("swept without an ID")
	}
	if err := Sweep("abcd", "/etc"); err == nil {
		t.Error("swept a folder that is no lab's")
	}
}
