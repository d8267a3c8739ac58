package dns

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// maxUDP is the largest answer by UDP, whatever the asker says that it takes: one
// that no path fragments.
const maxUDP = 1232

// Serve answers at addr, by UDP and TCP, until ctx ends.
func Serve(ctx context.Context, addr string, zone Zone, log *slog.Logger) error {
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		return fmt.Errorf("%w; choose another address with --dns", err)
	}
	// One port for both, also where addr leaves it to the system.
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		udp.Close()
		return err
	}
	_, port, _ := net.SplitHostPort(udp.LocalAddr().String())
	tcp, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		udp.Close()
		return fmt.Errorf("%w; choose another address with --dns", err)
	}
	return serve(ctx, udp, tcp, zone, log)
}

func serve(ctx context.Context, udp net.PacketConn, tcp net.Listener, zone Zone, log *slog.Logger) error {
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_, stream := w.RemoteAddr().(*net.TCPAddr)
		if err := w.WriteMsg(zone.reply(q, stream)); err != nil {
			log.Debug("an answer could not be sent", "to", w.RemoteAddr().String(), "err", err)
		}
	})
	servers := []*dns.Server{
		{PacketConn: udp, Handler: handler, UDPSize: dns.MaxMsgSize},
		{Listener: tcp, Handler: handler, ReadTimeout: 5 * time.Second, IdleTimeout: func() time.Duration { return 10 * time.Second }},
	}
	var running sync.WaitGroup
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, s := range servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = sync.OnceFunc(func() { close(started) })
		running.Go(func() { stop(s.ActivateAndServe()) })
		select { // one that has not started cannot be stopped
		case <-started:
		case <-ctx.Done():
		}
	}
	<-ctx.Done()
	err := context.Cause(ctx)
	for _, s := range servers {
		s.Shutdown() //nolint:errcheck // it was not running
	}
	udp.Close()
	tcp.Close()
	running.Wait()
	if err == context.Canceled {
		return nil
	}
	return err
}

// reply is the answer to one message.
func (z Zone) reply(q *dns.Msg, stream bool) *dns.Msg {
	r := new(dns.Msg)
	r.SetReply(q)
	r.Compress = true
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		r.SetEdns0(maxUDP, opt.Do())
		if opt.Version() != 0 {
			r.Rcode = dns.RcodeBadVers
			return r
		}
	}
	if stream {
		size = dns.MaxMsgSize
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		r.Rcode = dns.RcodeNotImplemented
	case len(q.Question) != 1:
		r.Rcode = dns.RcodeFormatError
	case q.Question[0].Qclass != dns.ClassINET || !dns.IsSubDomain(Name, dns.CanonicalName(q.Question[0].Name)),
		q.Question[0].Qtype == dns.TypeAXFR, q.Question[0].Qtype == dns.TypeIXFR:
		r.Rcode = dns.RcodeRefused
	default:
		a := z.Answer(q.Question[0].Name, q.Question[0].Qtype)
		r.Authoritative, r.Rcode, r.Answer = true, a.Rcode, a.Answer
		r.Extra = append(a.Extra, r.Extra...)
		// Many clients take the first address.
		rand.Shuffle(len(r.Answer), func(i, j int) { r.Answer[i], r.Answer[j] = r.Answer[j], r.Answer[i] })
		if len(a.Answer) == 0 && a.Rcode != dns.RcodeServerFailure {
			r.Ns = []dns.RR{soa()}
		}
	}
	r.Truncate(size)
	return r
}
