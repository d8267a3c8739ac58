package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// The ClusterProperties of the AboutAPI that say who the cluster is, and in which
// set of clusters.
const (
	propertyCluster    = "cluster.clusterset.k8s.io"
	propertyClusterSet = "clusterset.k8s.io"
)

// propertyResources are the versions of the kind, the best first. A ClusterProperty
// reads the same in all.
var propertyResources = []schema.GroupVersionResource{
	{Group: "about.k8s.io", Version: "v1beta1", Resource: "clusterproperties"},
	{Group: "about.k8s.io", Version: "v1alpha1", Resource: "clusterproperties"},
}

// propertiesAgain is how often it is looked whether the AboutAPI has come to be,
// and whether the properties stand.
const propertiesAgain = time.Minute

// properties keeps the ClusterProperties as long as their kind is there.
func (m *mcsWriter) properties(ctx context.Context) {
	const area = "part ClusterProperties"
	defer m.on.Problems.Set(area, nil)
	for ctx.Err() == nil {
		err := m.writeProperties(ctx)
		var problems []apiserver.Problem
		if err != nil && ctx.Err() == nil {
			problems = []apiserver.Problem{{Object: "ClusterProperties", What: "cannot be written", Why: err.Error(), Fix: "it is tried again by itself; see the permissions on clusterproperties.about.k8s.io"}}
		}
		m.on.Problems.Set(area, problems)
		select {
		case <-ctx.Done():
		case <-time.After(cmp.Or(m.cfg.PropertiesAgain, propertiesAgain)):
		}
	}
}

// writeProperties writes both, whatever somebody else has made of them.
func (m *mcsWriter) writeProperties(ctx context.Context) error {
	var propertyResource schema.GroupVersionResource
	for _, gvr := range propertyResources {
		there, err := m.cfg.Client.serves(ctx, gvr)
		if err != nil {
			return err
		}
		if there {
			propertyResource = gvr
			break
		}
	}
	if propertyResource.Empty() {
		return nil
	}
	group, err := m.cfg.Client.Group(propertyResource.GroupVersion())
	if err != nil {
		return err
	}
	for name, value := range map[string]string{propertyCluster: m.on.Cluster, propertyClusterSet: m.cfg.ClusterSet} {
		body, err := json.Marshal(map[string]any{
			"apiVersion": propertyResource.GroupVersion().String(), "kind": "ClusterProperty",
			"metadata": map[string]any{"name": name}, "spec": map[string]any{"value": value},
		})
		if err != nil {
			return err
		}
		if err := patchRequest(group, propertyResource.Resource, "", name, "", body).Do(ctx).Error(); err != nil {
			return err
		}
	}
	return nil
}
