package linux

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Readiness runs the readiness probes of local pods where no kubelet does. It
// must live in a process that is in the node's network namespace.
type Readiness struct {
	pods *Pods
	ctx  context.Context
	wg   sync.WaitGroup

	mu      sync.Mutex
	running map[string]*probing // by UID
}

type probing struct {
	probe  clustermesh.Probe
	addr   netip.Addr
	cancel context.CancelFunc
}

// NewReadiness probes until ctx ends; Wait waits for that.
func NewReadiness(ctx context.Context, pods *Pods) *Readiness {
	return &Readiness{pods: pods, ctx: ctx, running: map[string]*probing{}}
}

// Wait returns when all probes have ended, after ctx.
func (r *Readiness) Wait() { r.wg.Wait() }

// Update says which pods of this node have a probe, all of them, by UID. A pod
// with a probe is not ready until it passes; one whose probe is gone is ready.
func (r *Readiness) Update(probes map[string]clustermesh.Probe) {
	addrs := r.pods.setProbed(probes)
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, p := range r.running {
		if want, ok := probes[uid]; !ok || want != p.probe || addrs[uid] != p.addr {
			p.cancel()
			delete(r.running, uid)
		}
	}
	for uid, probe := range probes {
		addr := addrs[uid]
		if r.running[uid] != nil || !addr.IsValid() || r.ctx.Err() != nil {
			continue
		}
		ctx, cancel := context.WithCancel(r.ctx)
		r.running[uid] = &probing{probe: probe, addr: addr, cancel: cancel}
		r.wg.Go(func() {
			defer cancel()
			probeLoop(ctx, withDefaults(probe), func(ctx context.Context) error { return probeOnce(ctx, probe, addr) },
				func(ready bool) { r.pods.SetReady(uid, ready) })
		})
	}
}

// withDefaults fills in what Kubernetes does.
func withDefaults(p clustermesh.Probe) clustermesh.Probe {
	if p.Period <= 0 {
		p.Period = 10 * time.Second
	}
	if p.Timeout <= 0 {
		p.Timeout = time.Second
	}
	p.SuccessThreshold = max(p.SuccessThreshold, 1)
	if p.FailureThreshold <= 0 {
		p.FailureThreshold = 3
	}
	return p
}

// probeLoop counts: as many successes or failures in a row as the thresholds say
// change the verdict.
func probeLoop(ctx context.Context, p clustermesh.Probe, once func(context.Context) error, verdict func(bool)) {
	wait := p.InitialDelay
	good, bad := 0, 0
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		attempt, cancel := context.WithTimeout(ctx, p.Timeout)
		err := once(attempt)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
		}
		if good >= p.SuccessThreshold {
			verdict(true)
		}
		if bad >= p.FailureThreshold {
			verdict(false)
		}
		wait = p.Period
	}
}

// probeClient follows no redirect: any answer below 400 is a success.
var probeClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func probeOnce(ctx context.Context, p clustermesh.Probe, addr netip.Addr) error {
	target := net.JoinHostPort(addr.String(), strconv.Itoa(int(p.Port)))
	switch p.Kind {
	case "tcp":
		c, err := new(net.Dialer).DialContext(ctx, "tcp", target)
		if err == nil {
			c.Close()
		}
		return err
	case "http":
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target, nil)
		if err != nil {
			return err
		}
		req.URL.Path = p.Path
		req.Header.Set("User-Agent", "tombolo-probe")
		resp, err := probeClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10))
		if resp.StatusCode < 200 || resp.StatusCode >= 400 {
			return fmt.Errorf("HTTP status %d", resp.StatusCode)
		}
		return nil
	}
	return fmt.Errorf("unknown kind of probe %q", p.Kind)
}

// setProbed notes which pods have a probe, also those that are still to be
// added, and returns the address of each that is connected.
func (p *Pods) setProbed(probes map[string]clustermesh.Probe) map[string]netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	addrs, changed := map[string]netip.Addr{}, false
	for uid := range probes {
		if !p.probed[uid] && p.pods[uid] != nil {
			p.unready[uid], changed = true, true
		}
		if rec := p.pods[uid]; rec != nil && rec.Gone.IsZero() && len(rec.Addresses) > 0 {
			addrs[uid] = rec.Addresses[0]
		}
	}
	for uid := range p.unready {
		if _, ok := probes[uid]; !ok {
			delete(p.unready, uid)
			changed = true
		}
	}
	p.probed = make(map[string]bool, len(probes))
	for uid := range probes {
		p.probed[uid] = true
	}
	if changed {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	return addrs
}
