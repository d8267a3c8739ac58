package kubetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// stream writes watch events.
type stream struct {
	w   http.ResponseWriter
	enc *json.Encoder
}

func (s stream) send(kind string, object content) bool {
	if err := s.enc.Encode(content{"type": kind, "object": object}); err != nil {
		return false
	}
	s.w.(http.Flusher).Flush()
	return true
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, at target) {
	f, err := filterOf(r, at)
	if err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	from, _ := strconv.ParseInt(r.URL.Query().Get("resourceVersion"), 10, 64)
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	s.mu.Lock()
	rev, gone, cut, objects := s.rev, s.gone, s.cut, s.objects[at.GroupVersionResource]
	if s.frozen != nil {
		rev, objects = s.frozen.rev, s.frozen.objects[at.GroupVersionResource]
	}
	var first []content
	if initial || from == 0 {
		for _, name := range slices.Sorted(maps.Keys(objects)) {
			if f.matches(objects[name]) {
				first = append(first, objects[name])
			}
		}
	}
	s.mu.Unlock()
	switch {
	case from > rev:
		answer(w, http.StatusGatewayTimeout, tooLarge())
		return
	case from != 0 && from < gone && !initial:
		fail(w, http.StatusGone, "Expired", fmt.Sprintf("too old resource version: %d (%d)", from, gone))
		return
	}
	w.Header().Set("Content-Type", "application/json;stream=watch")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	out := stream{w, json.NewEncoder(w)}
	for _, c := range first {
		if !out.send("ADDED", c) {
			return
		}
	}
	if initial || from == 0 {
		from = rev
	}
	if initial && !out.send("BOOKMARK", bookmark(at, rev, true)) {
		return
	}
	timeout := 10 * time.Minute
	if n, err := strconv.Atoi(r.URL.Query().Get("timeoutSeconds")); err == nil {
		timeout = time.Duration(n) * time.Second
	}
	s.follow(out, r, at, f, from, cut, timeout)
}

// follow streams what happens after a revision.
func (s *Server) follow(out stream, r *http.Request, at target, f filter, from int64, cut <-chan struct{}, timeout time.Duration) {
	over := time.NewTimer(timeout)
	defer over.Stop()
	for {
		s.mu.Lock()
		stir := s.stir
		var news []change
		if s.frozen == nil {
			for _, c := range s.history {
				if c.rev > from && c.gvr == at.GroupVersionResource {
					news = append(news, c)
				}
			}
			if from < s.gone {
				from = s.gone
			}
		}
		s.mu.Unlock()
		for _, c := range news {
			from = c.rev
			kind, object := eventOf(f, c)
			if kind != "" && !out.send(kind, object) {
				return
			}
		}
		select {
		case <-stir:
		case <-cut:
			return
		case <-over.C:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// eventOf is how a change looks to a watch with a filter.
func eventOf(f filter, c change) (string, content) {
	was, is := f.matches(c.old), f.matches(c.now)
	switch {
	case is && !was:
		return "ADDED", c.now
	case is:
		return "MODIFIED", c.now
	case was:
		last := runtime.DeepCopyJSON(c.old)
		(&unstructured.Unstructured{Object: last}).SetResourceVersion(strconv.FormatInt(c.rev, 10))
		return "DELETED", last
	}
	return "", nil
}

func bookmark(at target, rev int64, initialEnd bool) content {
	m := content{"resourceVersion": strconv.FormatInt(rev, 10)}
	if initialEnd {
		m["annotations"] = content{"k8s.io/initial-events-end": "true"}
	}
	return content{"apiVersion": at.GroupVersion().String(), "kind": at.Name, "metadata": m}
}
