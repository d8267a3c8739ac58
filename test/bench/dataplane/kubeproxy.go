package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// kubeProxyLimit is how long the rules of the most services may take: half a
// minute on an idle machine, for iptables-restore.
const kubeProxyLimit = 10 * time.Minute

// findKubeProxy looks whether kube-proxy can run. Quick runs go without it where
// it was not built.
func (o *options) findKubeProxy() error {
	if o.kubeProxy == "" || !o.wantsVariant("b") && !o.wantsVariant("c") {
		o.kubeProxy = ""
		return nil
	}
	if _, err := os.Stat(o.kubeProxy); errors.Is(err, os.ErrNotExist) && o.quick {
		progress("kube-proxy is left out: there is no %s; make bin/kube-proxy takes some minutes", o.kubeProxy)
		o.kubeProxy = ""
		return nil
	} else if err != nil {
		return fmt.Errorf("kube-proxy: %w; run make bin/kube-proxy, or give an empty -kube-proxy to measure without it", err)
	}
	for _, tool := range []string{"nft", "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("kube-proxy needs %s: apt-get install nftables iptables", tool)
		}
	}
	return nil
}

// kubeProxy runs the real kube-proxy on the node of l until its rules are there,
// and ends it: the rules stay, and nothing disturbs what is measured.
func (l *lane) kubeProxy(ctx context.Context, program string, cpu int) error {
	ctx, cancel := context.WithTimeout(ctx, kubeProxyLimit)
	defer cancel()
	var log tail
	var cmd *exec.Cmd
	err := l.node.in(func() error {
		// A socket stays in the namespace it was made in.
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: newAPIServer(l.world, l.Services)}
		go srv.Serve(ln)
		context.AfterFunc(ctx, func() { srv.Close() })
		cmd = exec.Command(program, kubeProxyArgs(l.Way, ln.Addr().String())...)
		cmd.Stdout, cmd.Stderr = &log, &log
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("start kube-proxy: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
			<-exited
		}
	}()
	for {
		reached := l.reachAll(ctx, cpu)
		if reached == nil {
			return nil
		}
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("kube-proxy ended: %v\n%s", err, log.String())
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("no rules for %d services after %v: %w\n%s", l.Services, kubeProxyLimit, reached, log.String())
			}
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func kubeProxyArgs(mode, api string) []string {
	return []string{"--proxy-mode=" + mode, "--master=http://" + api, "--kube-api-content-type=application/json",
		"--kube-api-qps=1000", "--kube-api-burst=1000", "--hostname-override=" + nodeName, "--cluster-cidr=" + podPrefix.String(),
		"--nodeport-addresses=primary", "--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=127.0.0.1:10256",
		// Limits of connection tracking are those of the machine.
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--oom-score-adj=0"}
}

// tail keeps the end of a log.
type tail struct{ bytes.Buffer }

const tailBytes = 4096

func (t *tail) Write(b []byte) (int, error) {
	n, err := t.Buffer.Write(b)
	if over := t.Len() - tailBytes; over > 0 {
		t.Next(over)
	}
	return n, err
}
