package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serveMetrics serves /metrics, /livez and /readyz at --metrics, until it is stopped. It
// is there before anything is waited for: an agent without a mesh API server is alive,
// and to start it anew would help nobody.
func (n *node) serveMetrics(ctx context.Context) (stop func(), err error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", n.o.metrics)
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %w", n.o.metrics, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", n.metrics())
	mux.Handle("GET /readyz", &n.api)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("nobody is answered at --metrics any more", "err", err)
		}
	}()
	return func() { s.Close() }, nil
}

// metrics are the agent's, from when there is one.
func (n *node) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	var once sync.Once
	answer := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := n.running(); a != nil {
			once.Do(func() {
				if c := a.Collector(); c != nil {
					reg.MustRegister(c)
				}
			})
		}
		answer.ServeHTTP(w, r)
	})
}
