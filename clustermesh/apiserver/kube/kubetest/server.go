// Package kubetest is an API server in memory: the twin of a kube-apiserver for
// tests. It keeps objects of any kind, judges resource versions, filters by labels
// and fields, streams watches (initial events and bookmarks, too), and fails on
// request. It validates nothing and knows neither admission nor defaults.
package kubetest

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// Kind is one kind that the server has.
type Kind struct {
	schema.GroupVersionResource
	Name      string // Pod
	Namespace bool   // it lives in one
}

// builtIn are the kinds that every API server has, as far as tests need them.
var builtIn = []Kind{
	{schema.GroupVersionResource{Version: "v1", Resource: "services"}, "Service", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "Pod", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, "Node", false},
	{schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "Namespace", false},
	{schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, "ConfigMap", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, "Secret", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, "ServiceAccount", true},
	{schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}, "EndpointSlice", true},
	{schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}, "NetworkPolicy", true},
	{schema.GroupVersionResource{Group: "events.k8s.io", Version: "v1", Resource: "events"}, "Event", true},
	{schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, "CustomResourceDefinition", false},
}

// Server is the API server.
type Server struct {
	*httptest.Server

	mu      sync.Mutex
	kinds   map[schema.GroupVersionResource]Kind
	objects map[schema.GroupVersionResource]map[string]content // by namespace/name
	rev     int64
	gone    int64 // watches from before that are too old
	history []change
	stir    chan struct{} // closed at each change
	cut     chan struct{} // closed to end all watches
	fault   func(*http.Request) *Fault
	frozen  *frozen
	review  func(token string, audiences []string) content
}

// Fault is how a request fails.
type Fault struct {
	Code   int    // of HTTP; 0 = the connection breaks
	Reason string // Forbidden, Expired, …
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s := &Server{
		kinds:   make(map[schema.GroupVersionResource]Kind),
		objects: make(map[schema.GroupVersionResource]map[string]content),
		rev:     1000, stir: make(chan struct{}), cut: make(chan struct{}),
	}
	s.Serve(builtIn...)
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CutWatches()
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// Config is what a client needs.
func (s *Server) Config() *rest.Config { return &rest.Config{Host: s.URL} }

// Serve adds kinds, as a CustomResourceDefinition does.
func (s *Server) Serve(kinds ...Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range kinds {
		s.kinds[k.GroupVersionResource] = k
	}
}

// Unserve takes a kind away, with its objects.
func (s *Server) Unserve(gvr schema.GroupVersionResource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kinds, gvr)
	delete(s.objects, gvr)
}

// Fail has each request judged by f: nil = it is served. f nil = none fails.
func (s *Server) Fail(f func(*http.Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Away breaks all connections, and each further one until Back.
func (s *Server) Away() {
	s.Fail(func(*http.Request) *Fault { return &Fault{} })
	s.CutWatches()
}

// Back ends what Fail and Away began.
func (s *Server) Back() { s.Fail(nil) }

// CutWatches ends all watches.
func (s *Server) CutWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// Compact forgets history: a watch that would begin before now is too old.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rev++
	s.gone, s.history = s.rev, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	if fault != nil {
		if f := fault(r); f != nil {
			if f.Code == 0 {
				panic(http.ErrAbortHandler)
			}
			fail(w, f.Code, f.Reason, "this request fails on purpose")
			return
		}
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	var gv schema.GroupVersion
	switch {
	case len(parts) >= 2 && parts[0] == "api":
		gv.Version, parts = parts[1], parts[2:]
	case len(parts) == 2 && parts[0] == "apis":
		s.discover(w, parts[1])
		return
	case len(parts) == 3 && parts[0] == "apis":
		s.resources(w, schema.GroupVersion{Group: parts[1], Version: parts[2]})
		return
	case len(parts) > 3 && parts[0] == "apis":
		gv.Group, gv.Version, parts = parts[1], parts[2], parts[3:]
	default:
		fail(w, http.StatusNotFound, "NotFound", "no such path")
		return
	}
	s.route(w, r, gv, parts)
}

func (s *Server) route(w http.ResponseWriter, r *http.Request, gv schema.GroupVersion, parts []string) {
	var at target
	if len(parts) >= 3 && parts[0] == "namespaces" {
		at.namespace, parts = parts[1], parts[2:]
	}
	if len(parts) == 0 {
		fail(w, http.StatusNotFound, "NotFound", "no such path")
		return
	}
	gvr := gv.WithResource(parts[0])
	if gvr.Group == "authentication.k8s.io" && gvr.Resource == "tokenreviews" && r.Method == http.MethodPost {
		s.reviewToken(w, r)
		return
	}
	s.mu.Lock()
	k, ok := s.kinds[gvr]
	s.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
		return
	}
	at.Kind = k
	if len(parts) > 1 {
		at.name = parts[1]
	}
	if len(parts) > 2 {
		at.sub = parts[2]
	}
	switch {
	case r.Method == http.MethodGet && at.name == "" && r.URL.Query().Get("watch") != "":
		s.watch(w, r, at)
	case r.Method == http.MethodGet && at.name == "":
		s.list(w, r, at)
	case r.Method == http.MethodGet:
		s.get(w, at)
	default:
		s.write(w, r, at)
	}
}

// target is what a request is about.
type target struct {
	Kind
	namespace, name, sub string
}

func (s *Server) discover(w http.ResponseWriter, group string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var versions []string
	for gvr := range s.kinds {
		if gvr.Group == group && !slices.Contains(versions, gvr.Version) {
			versions = append(versions, gvr.Version)
		}
	}
	if len(versions) == 0 {
		fail(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
		return
	}
	slices.Sort(versions)
	list := make([]any, len(versions))
	for i, v := range versions {
		list[i] = content{"groupVersion": group + "/" + v, "version": v}
	}
	answer(w, http.StatusOK, content{"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": list, "preferredVersion": list[0]})
}

// resources serves what one version of a group has.
func (s *Server) resources(w http.ResponseWriter, gv schema.GroupVersion) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []any{}
	for gvr, k := range s.kinds {
		if gvr.GroupVersion() == gv {
			list = append(list, content{"name": gvr.Resource, "kind": k.Name, "namespaced": k.Namespace, "singularName": "", "verbs": []any{"get", "list", "watch"}})
		}
	}
	if len(list) == 0 {
		fail(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
		return
	}
	answer(w, http.StatusOK, content{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv.String(), "resources": list})
}

func answer(w http.ResponseWriter, code int, c content) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(c) // the client is gone: nobody to tell
}

func status(code int, reason, message string) content {
	return content{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": int64(code), "reason": reason, "message": message}
}

func fail(w http.ResponseWriter, code int, reason, message string) {
	answer(w, code, status(code, reason, message))
}
