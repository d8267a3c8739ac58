package lab

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// The workload: what runs in the lab's pods. It is this very executable, called
// again as `… lab-workload serve|client`, so that a lab needs no image.

const workloadArg = "lab-workload"

// Workload must be called right after Janitor: in a workload process it does
// not return.
func Workload() {
	if len(os.Args) < 3 || os.Args[1] != workloadArg {
		return
	}
	var err error
	switch os.Args[2] {
	case "serve":
		err = serve(os.Args[3:])
	case "client":
		err = client(os.Args[3:])
	case "steps":
		err = stepped(os.Args[3:])
	default:
		err = fmt.Errorf("unknown workload %q", os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// ServeArgv is the command of a pod that answers each line with its name, the
// line, and the address it was asked from; over TCP and UDP.
func ServeArgv(name string, port int) []string {
	exe, _ := os.Executable()
	return []string{exe, workloadArg, "serve", "-name", name, "-listen", fmt.Sprintf(":%d", port)}
}

func serve(args []string) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	name := fs.String("name", "", "what to answer with")
	listen := fs.String("listen", ":8080", "address")
	if err := fs.Parse(args); err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", *listen)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				continue // an ICMP error of an earlier answer
			}
			fmt.Fprint(packetTo{udp, from}, reply(*name, strings.TrimSpace(string(buf[:n])), from))
		}
	}()
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			for s := bufio.NewScanner(conn); s.Scan(); {
				if _, err := fmt.Fprint(conn, reply(*name, s.Text(), conn.RemoteAddr())); err != nil {
					return
				}
			}
		}()
	}
}

func reply(name, line string, from net.Addr) string {
	return fmt.Sprintf("%s %s %s\n", name, line, from)
}

type packetTo struct {
	net.PacketConn
	to net.Addr
}

func (p packetTo) Write(b []byte) (int, error) { return p.WriteTo(b, p.to) }

// client asks again and again and prints a line for each request:
//
//	<Unix nanoseconds at its end> <microseconds> ok <who answered>
//	<Unix nanoseconds at its end> <microseconds> fail <error>
func client(args []string) error {
	fs := flag.NewFlagSet("client", flag.ContinueOnError)
	target := fs.String("target", "", "address to ask")
	network := fs.String("network", "tcp", "tcp or udp")
	interval := fs.Duration("interval", 10*time.Millisecond, "between the starts of two requests")
	timeout := fs.Duration("timeout", 500*time.Millisecond, "of one request")
	mark := fs.String("mark", "hello", "what to say")
	keep := fs.Bool("keep", false, "one connection for all requests, as long as it lasts")
	open := fs.Bool("open", false, "start each request at its time, whether or not the last one was answered")
	loose := fs.Bool("unconnected", false, "UDP without connect(): every datagram is sent to the target, and must come back from it")
	if err := fs.Parse(args); err != nil {
		return err
	}
	c := asker{network: *network, target: *target, mark: *mark, timeout: *timeout, loose: *loose}
	tick := time.NewTicker(*interval)
	for ; ; <-tick.C {
		switch {
		case *open:
			go func() { c.say(c.once()) }()
		case *keep:
			c.say(c.again())
		default:
			c.say(c.once())
		}
	}
}

// asker asks one target, and says how it went.
type asker struct {
	network, target, mark string
	timeout               time.Duration
	loose                 bool

	conn net.Conn // for again
	mu   sync.Mutex
}

// say prints a result; each one ends when it is printed, so the ends are in order.
func (c *asker) say(begin time.Time, who string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := time.Now()
	word := "ok " + who
	if err != nil {
		word = "fail " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	fmt.Printf("%d %d %s\n", end.UnixNano(), end.Sub(begin).Microseconds(), word)
}

func (c *asker) dial() (net.Conn, error) {
	if c.loose {
		return unconnected(c.target)
	}
	return net.DialTimeout(c.network, c.target, c.timeout)
}

// once asks over a connection of its own.
func (c *asker) once() (begin time.Time, who string, err error) {
	begin = time.Now()
	conn, err := c.dial()
	if err != nil {
		return begin, "", err
	}
	defer conn.Close()
	who, err = ask(conn, c.mark, begin.Add(c.timeout))
	return begin, who, err
}

// again asks over the connection of the last time, as long as it lasts.
func (c *asker) again() (begin time.Time, who string, err error) {
	begin = time.Now()
	if c.conn == nil {
		if c.conn, err = c.dial(); err != nil {
			c.conn = nil
			return begin, "", err
		}
	}
	who, err = ask(c.conn, c.mark, begin.Add(c.timeout))
	if err != nil {
		c.conn.Close()
		c.conn = nil
	}
	return begin, who, err
}

// looseConn is a UDP socket that never calls connect().
type looseConn struct {
	*net.UDPConn
	to netip.AddrPort
}

func unconnected(target string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(target)
	if err != nil {
		return nil, err
	}
	network := "udp6"
	if to.Addr().Is4() {
		network = "udp4"
	}
	conn, err := net.ListenUDP(network, nil)
	return looseConn{conn, to}, err
}

func (c looseConn) Write(b []byte) (int, error) { return c.WriteToUDPAddrPort(b, c.to) }

// Read refuses what comes from another address than was asked: the caller of a
// service must not see its backends.
func (c looseConn) Read(b []byte) (int, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err == nil && netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != c.to {
		return 0, fmt.Errorf("asked %s, answered from %s", c.to, from)
	}
	return n, err
}

// ask sends one line and reads one; it returns the first word of the answer.
func ask(conn net.Conn, line string, deadline time.Time) (string, error) {
	conn.SetDeadline(deadline)
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	words := strings.Fields(answer)
	if len(words) < 2 || words[1] != line {
		return "", fmt.Errorf("strange answer %q", answer)
	}
	return words[0], nil
}
