package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// APIError is JSON of every answer that is not a success.
type APIError struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // Error
	Error      string `json:"error"`
}

// newAPI is the agent's API. It has no authentication of its own: it is served
// on a Unix socket with mode 0600.
//
//	GET  /readyz                              200 once ready, 503 before, with the reason
//	GET  /metrics                             Prometheus
//	GET  /v1/status                           Status
//	GET  /v1/tables                           the tables and where they stand
//	GET  /v1/tables/<name>[?wanted=true]      text: rows in the kernel, or as they should be
//	GET  /v1/services                         ServiceList
//	GET  /v1/services/<namespace>/<name>      ServiceExplanation
//	GET  /v1/endpoints                        EndpointList: the pods of this node, their states and policy
//	GET  /v1/policy                           PolicyList
//	POST /v1/policy/trace[?batch=1]           Question → PolicyTrace; batch: lines of JSON, answered in a line each
//	GET  /v1/flows[?last=&follow=1&verdict=&pod=&policy=]  Flow, as JSON lines
//	GET  /v1/pods                             pods on this node
//	GET  /v1/pods/ready                       200 if a pod could be added now, 503 with the reason if not
//	POST /v1/pods/add, /del, /check           PodRequest → PodResult
//	POST /v1/pods/gc                          CollectRequest
//	POST /v1/resync                           read the kernel again now
func newAPI(a *Agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", a.serveReady)
	registry := prometheus.NewRegistry()
	registry.MustRegister(a.Collector())
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		var s Status
		if a.asked(w, r, func() { s = a.status() }) {
			answer(w, http.StatusOK, s)
		}
	})
	mux.HandleFunc("GET /v1/tables", a.serveTables)
	mux.HandleFunc("GET /v1/tables/{name}", a.serveTable)
	mux.HandleFunc("GET /v1/services", func(w http.ResponseWriter, r *http.Request) {
		var list ServiceList
		if a.asked(w, r, func() { list = a.serviceList() }) {
			answer(w, http.StatusOK, list)
		}
	})
	mux.HandleFunc("GET /v1/services/{namespace}/{name}", a.serveExplain)
	mux.HandleFunc("GET /v1/endpoints", a.serveEndpoints)
	mux.HandleFunc("GET /v1/policy", a.servePolicies)
	mux.HandleFunc("POST /v1/policy/trace", a.serveTrace)
	mux.HandleFunc("GET /v1/flows", a.serveFlows)
	mux.HandleFunc("POST /v1/resync", func(w http.ResponseWriter, r *http.Request) {
		a.Notify("")
		answer(w, http.StatusAccepted, map[string]string{"apiVersion": APIVersion, "kind": "Resync"})
	})
	a.podRoutes(mux)
	return mux
}

// asked runs f on the owner goroutine; false = the answer is given already.
func (a *Agent) asked(w http.ResponseWriter, r *http.Request, f func()) bool {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	if err := a.call(ctx, f); err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the client is gone: nobody is left to tell
}

func refuse(w http.ResponseWriter, code int, err error) {
	answer(w, code, APIError{APIVersion: APIVersion, Kind: "Error", Error: Escape(err.Error())})
}

func (a *Agent) serveReady(w http.ResponseWriter, r *http.Request) {
	if a.Ready() {
		fmt.Fprintln(w, "ready")
		return
	}
	var s Status
	if !a.asked(w, r, func() { s = a.status() }) {
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintln(w, "not ready")
	for _, c := range s.Clusters {
		if c.Local && !c.Synced {
			fmt.Fprintf(w, "cluster %s is not synced: %s\n", c.Name, c.LastError)
		}
	}
	for _, t := range s.Tables {
		if t.Pending > 0 {
			fmt.Fprintf(w, "table %s: %d rows are not written\n", t.Name, t.Pending)
		}
	}
}

func (a *Agent) serveTables(w http.ResponseWriter, r *http.Request) {
	var s Status
	if a.asked(w, r, func() { s = a.status() }) {
		answer(w, http.StatusOK, struct {
			APIVersion string        `json:"apiVersion"`
			Kind       string        `json:"kind"`
			Items      []TableStatus `json:"items"`
		}{APIVersion, "TableList", s.Tables})
	}
}

func (a *Agent) serveTable(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	text, err := a.dump(name, r.URL.Query().Get("wanted") != "true")
	if err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, text)
}

func (a *Agent) serveExplain(w http.ResponseWriter, r *http.Request) {
	name := clustermesh.ServiceName{Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
	var e ServiceExplanation
	var err error
	if !a.asked(w, r, func() { e, err = a.explain(name) }) {
		return
	}
	switch {
	case err != nil:
		refuse(w, http.StatusNotFound, err)
	case strings.HasPrefix(r.Header.Get("Accept"), "text/plain"):
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, e.Text)
	default:
		answer(w, http.StatusOK, e)
	}
}
