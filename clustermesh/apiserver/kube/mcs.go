package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/mcs"
)

// mcsManager is who owns the fields that the Multi-Cluster Services API has
// written: server-side apply leaves those of others alone.
const mcsManager = "tombolo-mcs"

// MCSConfig says whose imports are written where.
type MCSConfig struct {
	Client *Client
	// ClusterSet is the value of the ClusterProperty clusterset.k8s.io: the name of
	// the mesh, alike in all its clusters.
	ClusterSet string
	// PropertiesAgain is how often the ClusterProperties are seen to; 0 = propertiesAgain.
	PropertiesAgain time.Duration
	Log             *slog.Logger // nil = discard
}

// MCS is the writer of the Multi-Cluster Services API: on the leading replica it
// keeps ServiceImports, their derived Services and EndpointSlices, and the
// conditions of ServiceExports as package mcs decides.
func MCS(cfg MCSConfig) apiserver.Part {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return apiserver.Part{Name: "Multi-Cluster Services API", Leading: true, Run: func(ctx context.Context, on *apiserver.Running) error {
		return newMCSWriter(cfg, on).run(ctx)
	}}
}

type mcsWriter struct {
	cfg   MCSConfig
	on    *apiserver.Running
	log   *slog.Logger
	queue workqueue.TypedRateLimitingInterface[clustermesh.ServiceName]

	exports    cache.SharedIndexInformer
	imports    cache.SharedIndexInformer
	services   cache.SharedIndexInformer
	slices     cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer

	mu      sync.Mutex
	applied map[string][32]byte // by kind and name: what was applied last in this term
	refused map[clustermesh.ServiceName]error
	failing map[clustermesh.ServiceName]apiserver.Problem
}

func newMCSWriter(cfg MCSConfig, on *apiserver.Running) *mcsWriter {
	return &mcsWriter{
		cfg: cfg, on: on, log: cfg.Log,
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[clustermesh.ServiceName](50*time.Millisecond, time.Minute)),
		applied: make(map[string][32]byte), refused: make(map[clustermesh.ServiceName]error), failing: make(map[clustermesh.ServiceName]apiserver.Problem),
	}
}

// mcsWorkers write at a time: most of a write is waiting for the API server.
const mcsWorkers = 4

func (m *mcsWriter) run(ctx context.Context) error {
	defer m.queue.ShutDown()
	if m.on.Exports == nil {
		return errors.New("the exports of the mesh are not followed")
	}
	for _, resource := range []string{v1beta1.ServiceExportPluralName, v1beta1.ServiceImportPluralName} {
		there, err := m.cfg.Client.serves(ctx, v1beta1.SchemeGroupVersion.WithResource(resource))
		if err == nil && !there {
			err = fmt.Errorf("the cluster has no %s.%s v1beta1: install the CustomResourceDefinitions of the Multi-Cluster Services API (they are in the chart), or leave --mcs out", resource, v1beta1.GroupName)
		}
		if err != nil {
			return err
		}
	}
	if err := m.watch(); err != nil {
		return err
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	all := []cache.SharedIndexInformer{m.exports, m.imports, m.services, m.slices, m.namespaces}
	for _, i := range all {
		parts.Go(func() { i.RunWithContext(ctx) })
	}
	for _, i := range all {
		if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
			return nil
		}
	}
	parts.Go(func() { m.properties(ctx) })
	changes := m.on.Exports.Watch()
	defer changes.Stop()
	for range mcsWorkers {
		parts.Go(m.work)
	}
	m.everything()
	for {
		select {
		case <-ctx.Done():
			m.queue.ShutDown()
			return nil
		case <-changes.C:
			names, all := changes.Take()
			for _, name := range names {
				m.queue.Add(name)
			}
			if all {
				m.everything()
			}
		}
	}
}

// everything asks anew about all names that there is anything of.
func (m *mcsWriter) everything() {
	for _, name := range m.on.Exports.Names() {
		m.queue.Add(name)
	}
	for _, i := range []cache.SharedIndexInformer{m.exports, m.imports, m.slices, m.services} {
		for _, o := range i.GetStore().List() {
			m.touch(o)
		}
	}
}

// touch asks anew about the services that an object has to do with.
func (m *mcsWriter) touch(o any) {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	switch o := o.(type) {
	case *v1beta1.ServiceExport:
		m.queue.Add(clustermesh.ServiceName{Namespace: o.Namespace, Name: o.Name})
	case *v1beta1.ServiceImport:
		m.queue.Add(clustermesh.ServiceName{Namespace: o.Namespace, Name: o.Name})
	case *discoveryv1.EndpointSlice:
		m.queue.Add(clustermesh.ServiceName{Namespace: o.Namespace, Name: o.Labels[v1beta1.LabelServiceName]})
	case *corev1.Service:
		if name := mcs.Imports(o); name != "" {
			m.queue.Add(clustermesh.ServiceName{Namespace: o.Namespace, Name: name})
		}
		// Its ServiceExport says whether there is such a Service.
		if _, exported, _ := m.exports.GetStore().GetByKey(o.Namespace + "/" + o.Name); exported {
			m.queue.Add(clustermesh.ServiceName{Namespace: o.Namespace, Name: o.Name})
		}
	case *corev1.Namespace:
		for _, name := range m.on.Exports.Names() {
			if name.Namespace == o.Name {
				m.queue.Add(name)
			}
		}
	}
}

func (m *mcsWriter) work() {
	for {
		name, quit := m.queue.Get()
		if quit {
			return
		}
		err := m.reconcile(name)
		if m.note(name, err); err != nil {
			m.queue.AddRateLimited(name)
		} else {
			m.queue.Forget(name)
		}
		m.queue.Done(name)
	}
}

// note keeps what fails as problems of the server.
func (m *mcsWriter) note(name clustermesh.ServiceName, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, had := m.failing[name]
	if err == nil && !had {
		return
	}
	if err == nil {
		delete(m.failing, name)
	} else {
		m.failing[name] = apiserver.Problem{Object: "ServiceImport " + name.String(), What: "is not up to date", Why: err.Error(), Fix: "it is tried again by itself"}
	}
	var all []apiserver.Problem
	for _, p := range m.failing {
		if all = append(all, p); len(all) == 20 {
			break
		}
	}
	m.on.Problems.Set("Multi-Cluster Services API", all)
}
