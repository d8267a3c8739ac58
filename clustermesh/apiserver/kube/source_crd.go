package kube

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// crdState follows the metadata of one CustomResourceDefinition: that it is there,
// and that it changed. It is the store of a reflector.
type crdState struct {
	client *Client
	name   string
	note   func(error)

	mu      sync.Mutex
	known   bool // a list has been answered
	there   bool
	changed chan struct{} // buffered by one
}

func newCRDState(c *Client, name string, note func(error)) *crdState {
	return &crdState{client: c, name: name, note: note, changed: make(chan struct{}, 1)}
}

func (c *crdState) run(ctx context.Context) {
	meta, err := c.client.Metadata()
	if err != nil {
		c.note(err)
		return
	}
	r := meta.Resource(crdResource)
	one := func(o metav1.ListOptions) metav1.ListOptions {
		o.FieldSelector = "metadata.name=" + c.name
		if o.ResourceVersion == "0" {
			o.ResourceVersion = ""
		}
		return o
	}
	cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l, err := r.List(ctx, one(o))
			c.outcome(ctx, err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := r.Watch(ctx, one(o))
			c.outcome(ctx, broken(w, err))
			return w, err
		},
	}, nil, c, cache.ReflectorOptions{Name: c.name, TypeDescription: c.name, Backoff: backoff()}).RunWithContext(ctx)
}

func (c *crdState) outcome(ctx context.Context, err error) {
	if ctx.Err() == nil && !tooLarge(err) {
		c.note(err)
	}
}

func (c *crdState) state() (there, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.there, c.known
}

func (c *crdState) set(there bool) {
	c.mu.Lock()
	c.there, c.known = there, true
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// wait returns when the definition changed, after limit (0 = none), or when ctx
// ends.
func (c *crdState) wait(ctx context.Context, limit time.Duration) {
	var over <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-ctx.Done():
	case <-c.changed:
	case <-over:
	}
}

// Add, Update, Delete, Replace and Resync implement cache.ReflectorStore.
func (c *crdState) Add(any) error    { c.set(true); return nil }
func (c *crdState) Update(any) error { c.set(true); return nil }
func (c *crdState) Delete(any) error { c.set(false); return nil }
func (c *crdState) Resync() error    { return nil }
func (c *crdState) Replace(list []any, _ string) error {
	c.set(len(list) > 0)
	return nil
}
