// Command labecho is the lab's only container program: pause, servers that
// say who answered, and clients that say who did.
//
//	labecho pause
//	labecho serve [-http 8080] [-tcp 9000] [-udp 9000]
//	labecho get  [-n 1] [-t 2s] URL            body of each answer, one line each
//	labecho tcp  [-n 1] [-t 2s] HOST:PORT      same, over TCP
//	labecho udp  [-n 1] [-t 2s] HOST:PORT      same, over UDP
//	labecho hold [-every 1s] HOST:PORT         one TCP connection kept open, a line each tick
//	labecho resolve NAME
//	labecho load [-open 4] [-every 20ms] HOST:PORT    connections kept and made, totals each second
//	labecho watch [-every 10ms] HOST:PORT             a line with the time whenever it turns
//
// Clients exit 1 if any attempt failed.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func whoami(kind, remote string) string {
	h, _ := os.Hostname()
	s := fmt.Sprintf("proto=%s host=%s from=%s", kind, h, remote)
	for _, k := range []string{"NODE", "CLUSTER"} {
		if v := os.Getenv(k); v != "" {
			s += fmt.Sprintf(" %s=%s", strings.ToLower(k), v)
		}
	}
	return s
}

func pause() {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range c {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}

func die(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(args []string) {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	hp := f.Int("http", 8080, "")
	tp := f.Int("tcp", 9000, "")
	up := f.Int("udp", 9000, "")
	f.Parse(args)
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", *tp))
	die(err)
	u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", *up))
	die(err)
	go func() {
		for {
			c, err := l.Accept()
			die(err)
			go func() {
				defer c.Close()
				sc := bufio.NewScanner(c)
				for sc.Scan() {
					fmt.Fprintf(c, "%s msg=%q\n", whoami("tcp", c.RemoteAddr().String()), sc.Text())
				}
			}()
		}
	}()
	go func() {
		b := make([]byte, 65536)
		for {
			n, a, err := u.ReadFrom(b)
			die(err)
			u.WriteTo([]byte(fmt.Sprintf("%s msg=%q\n", whoami("udp", a.String()), b[:n])), a)
		}
	}()
	h := http.NewServeMux()
	h.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	h.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s path=%s\n", whoami("http", r.RemoteAddr), r.URL.Path)
	})
	go pauseThenExit()
	die(http.ListenAndServe(fmt.Sprintf(":%d", *hp), h))
}

func pauseThenExit() { pause(); os.Exit(0) }

func main() {
	if len(os.Args) < 2 {
		pause()
		return
	}
	cmd, args := os.Args[1], os.Args[2:]
	f := flag.NewFlagSet(cmd, flag.ExitOnError)
	n := f.Int("n", 1, "attempts")
	t := f.Duration("t", 2*time.Second, "time limit of each")
	every := f.Duration("every", time.Second, "")
	open := f.Int("open", 4, "connections kept open")
	var one func(string) (string, error)
	switch cmd {
	case "pause", "sleep":
		pause()
		return
	case "serve":
		serve(args)
		return
	case "get":
		one = func(u string) (string, error) {
			c := &http.Client{Timeout: *t, Transport: &http.Transport{DisableKeepAlives: true}}
			r, err := c.Get(u)
			if err != nil {
				return "", err
			}
			defer r.Body.Close()
			b, err := io.ReadAll(r.Body)
			return string(b), err
		}
	case "tcp", "udp":
		one = func(a string) (string, error) {
			c, err := net.DialTimeout(cmd, a, *t)
			if err != nil {
				return "", err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(*t))
			fmt.Fprint(c, "hi\n")
			return bufio.NewReader(c).ReadString('\n')
		}
	case "hold":
		f.Parse(args)
		c, err := net.DialTimeout("tcp", f.Arg(0), *t)
		die(err)
		br := bufio.NewReader(c)
		for {
			c.SetDeadline(time.Now().Add(*t))
			fmt.Fprint(c, "hi\n")
			s, err := br.ReadString('\n')
			die(err)
			fmt.Print(s)
			time.Sleep(*every)
		}
	case "load":
		f.Parse(args)
		load(f.Arg(0), *open, *every, *t)
	case "watch":
		f.Parse(args)
		watch(f.Arg(0), *every, *t)
	case "resolve":
		one = func(name string) (string, error) {
			ctx, cancel := context.WithTimeout(context.Background(), *t)
			defer cancel()
			a, err := net.DefaultResolver.LookupHost(ctx, name)
			return strings.Join(a, " "), err
		}
	default:
		fmt.Fprintln(os.Stderr, "unknown subcommand", cmd)
		os.Exit(2)
	}
	f.Parse(args)
	bad := 0
	for range *n {
		s, err := one(f.Arg(0))
		if err != nil {
			bad++
			fmt.Println("error:", err)
			continue
		}
		fmt.Println(strings.TrimSpace(s))
	}
	if bad > 0 {
		os.Exit(1)
	}
}
