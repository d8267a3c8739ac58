// Package podtest is a kube-apiserver that has pods and can run commands in them,
// and nothing else: the far end of relay/pod for tests. It speaks both streaming
// protocols as the real one does.
package podtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Streams are those of a command that runs in a container.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Server is the kube-apiserver.
type Server struct {
	Pods []corev1.Pod
	// Run runs a command and returns its exit status; an error is one of the
	// runtime, which could not start it.
	Run func(pod, container string, command []string, s Streams) (int, error)
	// ListStatus and ExecStatus refuse lists of pods, and exec; 0 = they do not.
	ListStatus, ExecStatus int
	// OnlySPDY is a kube-apiserver, or a proxy before it, without WebSockets.
	OnlySPDY bool

	mu    sync.Mutex
	execs []string // protocol, pod, container, command
	url   string
}

// Execs are the commands that were run so far, each as "protocol pod container command".
func (s *Server) Execs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.execs)
}

// Start serves until the test ends. It returns a kubeconfig that names the server
// by each of the contexts, the first of which is the current one.
func (s *Server) Start(t testing.TB, contexts ...string) (kubeconfig string) {
	t.Helper()
	srv := httptest.NewServer(s)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	s.url = srv.URL
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Config\ncurrent-context: %s\nclusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u, user: {token: t}}]\ncontexts:\n", contexts[0], srv.URL)
	for _, name := range contexts {
		fmt.Fprintf(&b, "- {name: %s, context: {cluster: c, user: u}}\n", name)
	}
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// Pod is one whose container runs and is ready.
func Pod(namespace, name, label, container, node string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app.kubernetes.io/name": label}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: container}}},
		Status: corev1.PodStatus{
			Phase:             corev1.PodRunning,
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
		},
	}
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	words := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/api/v1/pods":
		s.list(w, r, "")
	case len(words) == 5 && words[4] == "pods":
		s.list(w, r, words[3])
	case len(words) == 7 && words[4] == "pods" && words[6] == "exec":
		s.exec(w, r, words[3], words[5])
	default:
		refuse(w, http.StatusNotFound, "the server could not find the requested resource")
	}
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, namespace string) {
	if s.ListStatus != 0 {
		refuse(w, s.ListStatus, "pods is forbidden: not for you")
		return
	}
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	for _, pod := range s.Pods {
		if (namespace == "" || pod.Namespace == namespace) && r.URL.Query().Get("labelSelector") == "app.kubernetes.io/name="+pod.Labels["app.kubernetes.io/name"] {
			list.Items = append(list.Items, pod)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(list)
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request, namespace, name string) {
	q := r.URL.Query()
	has := func(p corev1.Pod) bool { return p.Namespace == namespace && p.Name == name }
	web := r.Method == http.MethodGet
	switch {
	case s.ExecStatus != 0:
		refuse(w, s.ExecStatus, "pods/exec is forbidden: not for you")
	case web && s.OnlySPDY:
		http.Error(w, "I know no WebSockets", http.StatusBadRequest)
	case !slices.ContainsFunc(s.Pods, has):
		refuse(w, http.StatusNotFound, fmt.Sprintf("pods %q not found", name))
	default:
		protocol, serve := "spdy", s.serveSPDY
		if web {
			protocol, serve = "websocket", s.serveWebSocket
		}
		s.mu.Lock()
		s.execs = append(s.execs, strings.Join(append([]string{protocol, name, q.Get("container")}, q["command"]...), " "))
		s.mu.Unlock()
		serve(w, r, func(streams Streams) metav1.Status {
			return status(s.Run(name, q.Get("container"), q["command"], streams))
		})
	}
}

// status is how the end of a command is told.
func status(code int, err error) metav1.Status {
	switch {
	case err != nil:
		return metav1.Status{Status: metav1.StatusFailure, Message: err.Error(), Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError}
	case code != 0:
		return metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Message: fmt.Sprintf("command terminated with non-zero exit code %d", code),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: fmt.Sprint(code)}}}}
	}
	return metav1.Status{Status: metav1.StatusSuccess}
}

func refuse(w http.ResponseWriter, code int, message string) {
	reasons := map[int]metav1.StatusReason{http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusUnauthorized: metav1.StatusReasonUnauthorized, http.StatusNotFound: metav1.StatusReasonNotFound}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status: metav1.StatusFailure, Code: int32(code), Reason: reasons[code], Message: message})
}
