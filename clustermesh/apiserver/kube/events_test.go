package kube_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
)

// A refused annotation is one Event of its Service, however many replicas see it
// and however often; another value is another one.
func TestEvents(t *testing.T) {
	s := kubetest.New(t)
	s.Put(service("web", nil))
	client, err := kube.New(s.Config(), kube.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdle)
	problems := apiserver.NewProblems(nil)
	refused := func(value string) {
		problems.Set("objects", []apiserver.Problem{
			{Object: "Service shop/web", What: "its annotations are refused", Why: value + " is refused: allowed are true and false", Fix: "correct the annotation"},
			{Object: "Service shop/gone", What: "refused", Why: "x"},
			{Object: "store", What: "does not answer", Why: "x"},
		})
	}
	refused("maybe")
	on := &apiserver.Running{Cluster: "aws", Problems: problems, Log: slog.New(slog.DiscardHandler)}
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- kube.Events{Client: client}.Part().Run(ctx, on) }()
		eventually(t, "an event", func() bool { return len(notes(t, client)) == 1 })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	refused("perhaps")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- kube.Events{Client: client}.Part().Run(ctx, on) }()
	eventually(t, "another event", func() bool { return len(notes(t, client)) == 2 })
	cancel()
	<-done
	for _, n := range notes(t, client) {
		if !strings.HasPrefix(n, "AnnotationRefused web its annotations are refused: ") || !strings.Contains(n, "allowed are true and false") {
			t.Errorf("event: %s", n)
		}
	}
}

func notes(t *testing.T, client *kube.Client) (all []string) {
	list, err := client.Events("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if e.Regarding.UID != "" && e.Regarding.Kind == "Service" {
			all = append(all, e.Reason+" "+e.Regarding.Name+" "+e.Note)
		}
	}
	return all
}
