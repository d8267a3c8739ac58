package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// maxPodRequest bounds the body of a CNI call, in bytes: GC lists all sandboxes.
const maxPodRequest = 1 << 20

// podRoutes serve the CNI plugin.
func (a *Agent) podRoutes(mux *http.ServeMux) {
	pods := a.cfg.Pods
	if pods == nil {
		none := func(w http.ResponseWriter, _ *http.Request) {
			refuse(w, http.StatusNotImplemented, errors.New("this agent connects no pods"))
		}
		mux.HandleFunc("/v1/pods", none)
		mux.HandleFunc("/v1/pods/", none)
		return
	}
	mux.HandleFunc("GET /v1/pods", func(w http.ResponseWriter, r *http.Request) {
		list, err := pods.List(r.Context())
		if err != nil {
			refuse(w, http.StatusInternalServerError, err)
			return
		}
		if list == nil {
			list = []LocalPod{}
		}
		answer(w, http.StatusOK, struct {
			APIVersion string     `json:"apiVersion"`
			Kind       string     `json:"kind"`
			Items      []LocalPod `json:"items"`
		}{APIVersion, "PodList", list})
	})
	mux.HandleFunc("GET /v1/pods/ready", func(w http.ResponseWriter, r *http.Request) {
		if err := a.PodsReady(r.Context()); err != nil {
			refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		answer(w, http.StatusOK, map[string]string{"apiVersion": APIVersion, "kind": "Ready"})
	})
	mux.HandleFunc("POST /v1/pods/add", podCall(a.gate.add))
	mux.Handle("POST /v1/pods/del", ServeDel(pods.Del))
	mux.HandleFunc("POST /v1/pods/check", podCall(func(ctx context.Context, r PodRequest) (PodResult, error) {
		return PodResult{}, pods.Check(ctx, r)
	}))
	mux.HandleFunc("POST /v1/pods/gc", podCall(func(ctx context.Context, r CollectRequest) (PodResult, error) {
		return PodResult{}, pods.Collect(ctx, r)
	}))
}

// ServeDel answers POST /v1/pods/del. An agent that waits for its registration
// serves it already: nothing of the cluster's is needed to let go of a pod.
func ServeDel(del func(context.Context, PodRequest) error) http.Handler {
	return podCall(func(ctx context.Context, r PodRequest) (PodResult, error) { return PodResult{}, del(ctx, r) })
}

func podCall[R any](f func(context.Context, R) (PodResult, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req R
		in := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPodRequest))
		if err := in.Decode(&req); err != nil {
			refuse(w, http.StatusBadRequest, fmt.Errorf("pod request: %w", err))
			return
		}
		res, err := f(r.Context(), req)
		if errors.Is(err, errPodNotYet) {
			refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		if err != nil {
			refuse(w, http.StatusInternalServerError, err)
			return
		}
		answer(w, http.StatusOK, res)
	}
}
