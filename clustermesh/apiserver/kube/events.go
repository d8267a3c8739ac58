package kube

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// Events tells the owners of Services, by Events of theirs, what of them was
// refused and why. client-go's recorder would link all of Kubernetes' API groups;
// here an Event is a problem that lasts, so its name is made of the problem: the
// API server itself refuses a second one, also of another replica.
type Events struct{ Client *Client }

// Part is the work of the leading replica.
func (e Events) Part() apiserver.Part {
	return apiserver.Part{Name: "events", Leading: true, Run: e.run}
}

const (
	eventsController = "tombolo.io/apiserver"
	// eventsAgain is how often a problem that lasts is told again: Kubernetes
	// forgets Events after an hour.
	eventsAgain = time.Hour
	eventsLook  = time.Second
	maxNote     = 1024
)

func (e Events) run(ctx context.Context, on *apiserver.Running) error {
	told := make(map[apiserver.Problem]time.Time)
	limit := rate.NewLimiter(2, 25)
	look := time.NewTicker(eventsLook)
	defer look.Stop()
	for {
		present := make(map[apiserver.Problem]bool)
		for _, p := range on.Problems.All() {
			p.Since = time.Time{}
			present[p] = true
			if at, was := told[p]; was && time.Since(at) < eventsAgain {
				continue
			}
			namespace, name, ok := serviceOf(p)
			if !ok || !limit.Allow() {
				continue
			}
			if err := e.tell(ctx, namespace, name, p); err != nil {
				on.Log.Debug("event not written", "service", namespace+"/"+name, "err", err)
				continue
			}
			told[p] = time.Now()
		}
		for p := range told {
			if !present[p] {
				delete(told, p)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}

// serviceOf is the Service that a problem is about.
func serviceOf(p apiserver.Problem) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(p.Object, apiserver.KindService+" ")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "/")
}

// tell writes the Event, unless there is one.
func (e Events) tell(ctx context.Context, namespace, name string, p apiserver.Problem) error {
	ctx, cancel := context.WithTimeout(ctx, RequestTime)
	defer cancel()
	svc, err := e.Client.Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // the problem goes with it
	}
	if err != nil {
		return err
	}
	_, err = e.Client.Events(namespace).Create(ctx, eventOf(svc, p, time.Now()), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// eventOf is the Event of a problem. Pure but for the host's name.
func eventOf(svc *corev1.Service, p apiserver.Problem, now time.Time) *eventsv1.Event {
	sum := sha256.Sum256([]byte(string(svc.UID) + "\n" + p.What + "\n" + p.Why + "\n" + p.Fix))
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	reason := "Problem"
	switch {
	case strings.Contains(p.What, "annotations are refused"):
		reason = "AnnotationRefused"
	case strings.Contains(p.What, "annotation has no effect"):
		reason = "AnnotationWithoutEffect"
	case strings.Contains(p.What, "refused"):
		reason = "ServiceRefused"
	}
	note := p.What + ": " + p.Why
	if p.Fix != "" {
		note += "; " + p.Fix
	}
	for len(note) > maxNote {
		_, n := utf8.DecodeLastRuneInString(note)
		note = note[:len(note)-n]
	}
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: fmt.Sprintf("%.200s.%x", svc.Name, sum[:8])},
		EventTime:  metav1.NewMicroTime(now), Type: corev1.EventTypeWarning, Reason: reason, Action: "Publish", Note: note,
		ReportingController: eventsController, ReportingInstance: fmt.Sprintf("%.120s", host),
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: apiserver.KindService, Namespace: svc.Namespace, Name: svc.Name, UID: svc.UID, ResourceVersion: svc.ResourceVersion},
	}
}
