package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// probes answers the probes of Kubernetes, and beside them whatever else there is:
// metrics, if metrics is not nil. A process that answers is alive; notReady says why
// nothing can be had of it yet, "" = it is ready.
func probes(notReady func() string, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	ready := func(w http.ResponseWriter, _ *http.Request) {
		if why := notReady(); why != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "not ready: %s\n", why)
			return
		}
		fmt.Fprintln(w, "ready")
	}
	mux.HandleFunc("GET /readyz", ready)
	if metrics == nil { // there is nothing to measure: a scrape fails, and says why
		metrics = http.HandlerFunc(ready)
	}
	mux.Handle("GET /metrics", metrics)
	return mux
}

// serveProbes serves them until ctx ends.
func serveProbes(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func metricsHandler(s *server) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(metricsCollector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return probes(s.notReady, promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
}

// notReady: a replica is ready while it follows its store, so that what it serves
// is present. Whether it leads, and whether Kubernetes answers it, does not matter to readers.
func (s *server) notReady() string {
	if f := s.follow.Load(); f == nil || !f.Connected {
		return "the store is not followed; look at tombolo status"
	}
	return ""
}
