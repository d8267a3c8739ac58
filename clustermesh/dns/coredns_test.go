package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestCoreDNSStub: a CoreDNS with the stub of deploy/README.md answers as the
// server itself does.
func TestCoreDNSStub(t *testing.T) {
	binary := os.Getenv("COREDNS")
	if binary == "" {
		t.Skip("needs the program of CoreDNS: set COREDNS to its path")
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error)
	go func() {
		served <- serve(ctx, udp, tcp, Zone{Source: theWorld(), Cluster: "a"}, slog.New(slog.DiscardHandler))
	}()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()
	corefile := filepath.Join(t.TempDir(), "Corefile")
	conf := fmt.Sprintf("clusterset.local:%d {\n errors\n cache 5\n forward . %s\n}\n", port, udp.LocalAddr())
	if err := os.WriteFile(corefile, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, binary, "-conf", corefile)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }() //nolint:errcheck // it was killed
	for name, kind := range map[string]uint16{
		"web.ns.svc.clusterset.local.": dns.TypeA, "_http._tcp.web.ns.svc.clusterset.local.": dns.TypeSRV, "db.ns.svc.clusterset.local.": dns.TypeAAAA,
		"db-0.b.db.ns.svc.clusterset.local.": dns.TypeA, "x.ns.svc.clusterset.local.": dns.TypeA,
	} {
		want := Zone{Source: theWorld(), Cluster: "a"}.Answer(name, kind)
		var r *dns.Msg
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			c := dns.Client{Timeout: time.Second}
			if r, _, err = c.Exchange(new(dns.Msg).SetQuestion(name, kind), fmt.Sprintf("127.0.0.1:%d", port)); err == nil && r.Rcode != dns.RcodeServerFailure {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := textOf(r); got != text(want) {
			t.Errorf("%s: %s, want %s", name, got, text(want))
		}
	}
}

func textOf(r *dns.Msg) string { return text(Answer{Rcode: r.Rcode, Answer: r.Answer}) }
