package kubetest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
)

// content is an object as JSON has it. One that was stored is not changed again.
type content = map[string]any

// change is one write.
type change struct {
	rev      int64
	gvr      schema.GroupVersionResource
	old, now content // nil: it was not there, it is gone
}

// frozen is the state that a server which is behind shows.
type frozen struct {
	rev     int64
	objects map[schema.GroupVersionResource]map[string]content
}

// Freeze has lists and watches answered from what is there now, as by an API
// server that is cut off from its etcd, until Thaw.
func (s *Server) Freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &frozen{rev: s.rev, objects: make(map[schema.GroupVersionResource]map[string]content)}
	for gvr, m := range s.objects {
		f.objects[gvr] = maps.Clone(m)
	}
	s.frozen = f
}

// Thaw ends what Freeze began.
func (s *Server) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = nil
	s.wake()
}

// Restore goes back to an earlier state, as an etcd that was restored from a copy
// does: resource versions, too, are those of then. Watches end.
func (s *Server) Restore(f func()) {
	s.mu.Lock()
	at, objects := s.rev, make(map[schema.GroupVersionResource]map[string]content)
	for gvr, m := range s.objects {
		objects[gvr] = maps.Clone(m)
	}
	s.mu.Unlock()
	f()
	s.mu.Lock()
	s.rev, s.objects, s.history, s.gone = at, objects, nil, at
	s.mu.Unlock()
	s.CutWatches()
}

func (s *Server) wake() {
	close(s.stir)
	s.stir = make(chan struct{})
}

func key(namespace, name string) string { return namespace + "/" + name }

// put stores c, nil = deletes; the caller holds the lock. It returns what is stored.
func (s *Server) put(k Kind, namespace, name string, c content) content {
	s.rev++
	m := s.objects[k.GroupVersionResource]
	if m == nil {
		m = make(map[string]content)
		s.objects[k.GroupVersionResource] = m
	}
	old := m[key(namespace, name)]
	if c == nil {
		delete(m, key(namespace, name))
	} else {
		c = runtime.DeepCopyJSON(c)
		c["apiVersion"], c["kind"] = k.GroupVersion().String(), k.Name
		u := unstructured.Unstructured{Object: c}
		u.SetNamespace(namespace)
		u.SetName(name)
		u.SetResourceVersion(strconv.FormatInt(s.rev, 10))
		generation := int64(1)
		if old == nil {
			u.SetUID(uuid.NewUUID())
			if _, had := c["metadata"].(content)["creationTimestamp"].(string); !had {
				c["metadata"].(content)["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
			}
		} else {
			before := unstructured.Unstructured{Object: old}
			u.SetUID(before.GetUID())
			c["metadata"].(content)["creationTimestamp"] = old["metadata"].(content)["creationTimestamp"]
			if generation = before.GetGeneration(); !reflect.DeepEqual(old["spec"], c["spec"]) {
				generation++
			}
		}
		u.SetGeneration(generation)
		m[key(namespace, name)] = c
	}
	s.history = append(s.history, change{s.rev, k.GroupVersionResource, old, c})
	s.wake()
	return c
}

// Put stores objects, as somebody with all rights would. Each needs apiVersion
// and kind, or a Go type that kube.Scheme knows.
func (s *Server) Put(objects ...runtime.Object) {
	for _, o := range objects {
		c, k := s.contentOf(o)
		u := unstructured.Unstructured{Object: c}
		s.mu.Lock()
		s.put(k, u.GetNamespace(), u.GetName(), c)
		s.mu.Unlock()
	}
}

// Delete deletes objects by their kind, namespace and name.
func (s *Server) Delete(objects ...runtime.Object) {
	for _, o := range objects {
		c, k := s.contentOf(o)
		u := unstructured.Unstructured{Object: c}
		s.mu.Lock()
		s.put(k, u.GetNamespace(), u.GetName(), nil)
		s.mu.Unlock()
	}
}

func (s *Server) contentOf(o runtime.Object) (content, Kind) {
	c, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		panic(err)
	}
	gvk := o.GetObjectKind().GroupVersionKind()
	if gvk.Kind == "" {
		all, _, err := kube.Scheme.ObjectKinds(o)
		if err != nil {
			panic(err)
		}
		gvk = all[0]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for gvr, k := range s.kinds {
		if gvr.GroupVersion() == gvk.GroupVersion() && k.Name == gvk.Kind {
			return c, k
		}
	}
	panic(fmt.Sprintf("kubetest: %s is not served", gvk))
}

// filter is what a list or watch is about.
type filter struct {
	namespace string
	labels    labels.Selector
	fields    fields.Selector
}

func filterOf(r *http.Request, at target) (filter, error) {
	f := filter{namespace: at.namespace}
	var err error
	if f.labels, err = labels.Parse(r.URL.Query().Get("labelSelector")); err != nil {
		return f, err
	}
	f.fields, err = fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	return f, err
}

func (f filter) matches(c content) bool {
	if c == nil {
		return false
	}
	u := unstructured.Unstructured{Object: c}
	if f.namespace != "" && u.GetNamespace() != f.namespace {
		return false
	}
	return f.labels.Matches(labels.Set(u.GetLabels())) && f.fields.Matches(fieldSet(c))
}

// fieldSet looks fields up by their path; what is not there is "".
type fieldSet content

func (f fieldSet) Has(string) bool { return true }
func (f fieldSet) Get(path string) string {
	v, _, _ := unstructured.NestedFieldNoCopy(f, strings.Split(path, ".")...)
	if text, ok := v.(string); ok {
		return text
	}
	return ""
}

func (s *Server) get(w http.ResponseWriter, at target) {
	s.mu.Lock()
	c := s.objects[at.GroupVersionResource][key(at.namespace, at.name)]
	s.mu.Unlock()
	if c == nil {
		fail(w, http.StatusNotFound, "NotFound", at.Resource+" \""+at.name+"\" not found")
		return
	}
	answer(w, http.StatusOK, c)
}

func tooLarge() content {
	c := status(http.StatusGatewayTimeout, "Timeout", "Too large resource version")
	c["details"] = content{"causes": []any{content{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}}, "retryAfterSeconds": int64(1)}
	return c
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, at target) {
	f, err := filterOf(r, at)
	if err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	s.mu.Lock()
	rev, objects := s.rev, s.objects[at.GroupVersionResource]
	if s.frozen != nil {
		rev, objects = s.frozen.rev, s.frozen.objects[at.GroupVersionResource]
	}
	items := []any{}
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		if f.matches(objects[name]) {
			items = append(items, objects[name])
		}
	}
	s.mu.Unlock()
	if asked, _ := strconv.ParseInt(r.URL.Query().Get("resourceVersion"), 10, 64); asked > rev {
		answer(w, http.StatusGatewayTimeout, tooLarge())
		return
	}
	answer(w, http.StatusOK, content{
		"apiVersion": at.GroupVersion().String(), "kind": at.Name + "List",
		"metadata": content{"resourceVersion": strconv.FormatInt(rev, 10)}, "items": items,
	})
}

var decoder = serializer.NewCodecFactory(kube.Scheme).UniversalDeserializer()

// body reads an object from a request: JSON, or protobuf of a known kind.
func body(r *http.Request) (content, error) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if r.Header.Get("Content-Type") == runtime.ContentTypeProtobuf {
		o, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			return nil, err
		}
		return runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	}
	u := new(unstructured.Unstructured)
	if err := json.Unmarshal(text, &u.Object); err != nil {
		return nil, err
	}
	return runtime.DeepCopyJSON(numbers(u.Object).(content)), nil
}

// numbers makes whole numbers of JSON int64, as the deep copy of objects wants.
func numbers(v any) any {
	switch v := v.(type) {
	case content:
		for k := range v {
			v[k] = numbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	}
	return v
}

// write serves POST, PUT, PATCH and DELETE.
func (s *Server) write(w http.ResponseWriter, r *http.Request, at target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.objects[at.GroupVersionResource][key(at.namespace, at.name)]
	if at.name != "" && old == nil && !(r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/apply-patch+yaml") {
		fail(w, http.StatusNotFound, "NotFound", at.Resource+" \""+at.name+"\" not found")
		return
	}
	if r.Method == http.MethodDelete {
		s.remove(w, at, old)
		return
	}
	var c content
	var err error
	if r.Method == http.MethodPatch {
		c, err = patched(r, old)
	} else {
		c, err = body(r)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	u := unstructured.Unstructured{Object: c}
	if r.Method == http.MethodPost {
		if u.GetName() == "" {
			u.SetName(u.GetGenerateName() + string(uuid.NewUUID())[:5])
		}
		if at.name = u.GetName(); s.objects[at.GroupVersionResource][key(at.namespace, at.name)] != nil {
			fail(w, http.StatusConflict, "AlreadyExists", at.Resource+" \""+at.name+"\" already exists")
			return
		}
		answer(w, http.StatusCreated, s.put(at.Kind, at.namespace, at.name, c))
		return
	}
	if have := u.GetResourceVersion(); old != nil && have != "" && have != (&unstructured.Unstructured{Object: old}).GetResourceVersion() {
		fail(w, http.StatusConflict, "Conflict", "the object has been modified; please apply your changes to the latest version and try again")
		return
	}
	s.replace(w, at, old, c)
}

// replace stores a changed object: of its status alone, or all but its status.
func (s *Server) replace(w http.ResponseWriter, at target, old, c content) {
	if at.sub == "status" {
		next := runtime.DeepCopyJSON(old)
		next["status"] = c["status"]
		c = next
	} else if old != nil && !slices.ContainsFunc(builtIn, func(k Kind) bool { return k.GroupVersionResource == at.GroupVersionResource }) {
		c["status"] = old["status"]
		if c["status"] == nil {
			delete(c, "status")
		}
	}
	u := unstructured.Unstructured{Object: c}
	if old != nil && u.GetDeletionTimestamp() != nil && len(u.GetFinalizers()) == 0 {
		s.put(at.Kind, at.namespace, at.name, nil)
		answer(w, http.StatusOK, c)
		return
	}
	if old != nil {
		// A write that changes nothing has no effect, as in the real one.
		same := runtime.DeepCopyJSON(c)
		v := unstructured.Unstructured{Object: same}
		v.SetResourceVersion((&unstructured.Unstructured{Object: old}).GetResourceVersion())
		if reflect.DeepEqual(same, old) {
			answer(w, http.StatusOK, old)
			return
		}
	}
	answer(w, http.StatusOK, s.put(at.Kind, at.namespace, at.name, c))
}

func (s *Server) remove(w http.ResponseWriter, at target, old content) {
	u := unstructured.Unstructured{Object: runtime.DeepCopyJSON(old)}
	if len(u.GetFinalizers()) == 0 {
		s.put(at.Kind, at.namespace, at.name, nil)
	} else if u.GetDeletionTimestamp() == nil {
		u.Object["metadata"].(content)["deletionTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		s.put(at.Kind, at.namespace, at.name, u.Object)
	}
	answer(w, http.StatusOK, content{"kind": "Status", "apiVersion": "v1", "status": "Success"})
}

// patched applies a merge patch; a server-side apply is taken for one.
func patched(r *http.Request, old content) (content, error) {
	patch, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	if old == nil {
		before = []byte("{}")
	}
	var after []byte
	if r.Header.Get("Content-Type") == "application/json-patch+json" {
		ops, err := jsonpatch.DecodePatch(patch)
		if err != nil {
			return nil, err
		}
		after, err = ops.Apply(before)
		if err != nil {
			return nil, err
		}
	} else if after, err = jsonpatch.MergePatch(before, patch); err != nil {
		return nil, err
	}
	var c content
	if err := json.Unmarshal(after, &c); err != nil {
		return nil, err
	}
	return numbers(c).(content), nil
}
