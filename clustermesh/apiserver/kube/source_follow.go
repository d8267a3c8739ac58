package kube

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
)

// backoff is of requests that fail: client-go's own grows to a minute, and a
// mesh is to know soon that an API server is back.
func backoff() *wait.Backoff {
	return &wait.Backoff{Duration: 200 * time.Millisecond, Cap: 5 * time.Second, Steps: 8, Factor: 2, Jitter: 0.5}
}

// run follows the kind until ctx ends.
func (k *kindState) run(ctx context.Context) {
	if k.optional {
		k.runOptional(ctx)
		return
	}
	k.reflect(ctx, k.versions[0])
}

// reflect lists and watches the kind in one version until ctx ends.
func (k *kindState) reflect(ctx context.Context, version string) {
	lw, err := k.listWatch(version)
	if err != nil { // of settings that New has tried: it cannot be
		k.note(ctx, err)
		return
	}
	r := cache.NewReflectorWithOptions(lw, nil, k, cache.ReflectorOptions{
		Name: k.resource, TypeDescription: k.name, Backoff: backoff(),
	})
	r.RunWithContext(ctx)
	k.endWatch()
}

// note keeps the outcome of a request.
func (k *kindState) note(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || tooLarge(err) {
		return // the reflector lists again, and that has an outcome, too
	}
	s := k.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && !errors.Is(k.err, errBehind) {
		if k.err != nil {
			k.err = nil
			s.stir()
		}
		return
	}
	if err != nil {
		if k.err == nil {
			k.errAt = time.Now()
			time.AfterFunc(s.cfg.Forbidden, s.stir)
		}
		k.err = err
		s.stir()
	}
}

func tooLarge(err error) bool {
	return apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

// runOptional follows a custom resource. Whether there is one, and in which
// versions, its CustomResourceDefinition says; each change of that one has the
// API server asked again what it serves.
func (k *kindState) runOptional(ctx context.Context) {
	crd := newCRDState(k.source.cfg.Client, k.crd(), k.noteCRD)
	done := make(chan struct{})
	go func() { defer close(done); crd.run(ctx) }()
	defer func() { <-done }()

	stop := func() {}
	defer func() { stop() }()
	current, delay := "", time.Duration(0)
	for ctx.Err() == nil {
		version, err := k.served(ctx)
		there, known := crd.state()
		switch {
		case err != nil:
			k.note(ctx, err)
		case version == "" && !there:
			stop()
			stop, current = func() {}, ""
			if known || k.crdForbidden() {
				k.absent()
			}
		case version != "" && version != current:
			stop()
			stop, current = k.start(ctx, version), version
		}
		// An answer that does not fit to what the definition says is asked for
		// again; so is one that no definition may be seen for.
		settled := err == nil && known && (version != "") == there
		delay = nextDelay(delay, settled)
		crd.wait(ctx, delay)
		if settled {
			delay = 0
		}
	}
}

func nextDelay(before time.Duration, settled bool) time.Duration {
	if settled {
		return 0 // until the definition changes
	}
	return min(max(2*before, 200*time.Millisecond), 30*time.Second)
}

// start follows one version; stop ends that and waits.
func (k *kindState) start(ctx context.Context, version string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); k.reflect(ctx, version) }()
	return func() { cancel(); <-done }
}

// served is the first of the kind's versions that the API server has; "" = none.
func (k *kindState) served(ctx context.Context) (string, error) {
	for _, version := range k.versions {
		ok, err := k.source.cfg.Client.serves(ctx, k.gvr(version))
		if err != nil {
			return "", err
		}
		if ok {
			return version, nil
		}
	}
	return "", nil
}

// serves asks whether the API server has a resource.
func (c *Client) serves(ctx context.Context, gvr schema.GroupVersionResource) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, RequestTime)
	defer cancel()
	group, err := c.Group(gvr.GroupVersion())
	if err != nil {
		return false, err
	}
	list := new(metav1.APIResourceList)
	err = group.Get().AbsPath("/apis/"+gvr.GroupVersion().String()).SetHeader("Accept", "application/json").Do(ctx).Into(list)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, r := range list.APIResources {
		if r.Name == gvr.Resource {
			return true, nil
		}
	}
	return false, nil
}

func (k *kindState) noteCRD(err error) {
	k.source.mu.Lock()
	defer k.source.mu.Unlock()
	if (err == nil) != (k.crdErr == nil) {
		k.source.stir()
	}
	k.crdErr = err
}

func (k *kindState) crdForbidden() bool {
	k.source.mu.Lock()
	defer k.source.mu.Unlock()
	return apierrors.IsForbidden(k.crdErr)
}
