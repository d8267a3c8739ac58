package clustermesh

import (
	"slices"
	"strings"
)

// Keys of security labels that are not pod labels. No pod can set them: pod
// labels under tombolo.io/ are left out, and no label key has a colon.
const (
	LabelCluster         = "tombolo.io/cluster" // names a workload's cluster
	LabelNamespace       = "tombolo.io/namespace"
	LabelServiceAccount  = "tombolo.io/serviceaccount"
	LabelNamespacePrefix = "namespace:" // before the key of a label of the namespace
	ownLabels            = "tombolo.io/"
	labelMetadataName    = "kubernetes.io/metadata.name"
)

// fleeting labels differ from pod to pod or from rollout to rollout: an identity
// of each would say nothing and there would be as many as pods.
var fleeting = map[string]bool{
	"pod-template-hash": true, "pod-template-generation": true, "controller-revision-hash": true,
	"controller-uid": true, "batch.kubernetes.io/controller-uid": true,
}

// FleetingLabel reports whether a pod label is left out of identities because it
// differs from pod to pod or from rollout to rollout.
func FleetingLabel(key string) bool { return fleeting[key] }

// SecurityLabels is what the identity of a pod stands for, sorted by key. An
// empty service account is the default one; namespaceLabels may be nil: the
// namespace then has no label but its name.
func SecurityLabels(cluster, namespace, serviceAccount string, podLabels, namespaceLabels map[string]string) []Label {
	labels := make([]Label, 0, len(podLabels)+len(namespaceLabels)+4)
	add := func(key, value string) { labels = append(labels, Label{Key: key, Value: value}) }
	for k, v := range podLabels {
		if !fleeting[k] && !strings.HasPrefix(k, ownLabels) {
			add(k, v)
		}
	}
	if serviceAccount == "" {
		serviceAccount = "default"
	}
	add(LabelCluster, cluster)
	add(LabelNamespace, namespace)
	add(LabelServiceAccount, serviceAccount)
	// Every Kubernetes sets this one, and policies select by it.
	add(LabelNamespacePrefix+labelMetadataName, namespace)
	for k, v := range namespaceLabels {
		if k != labelMetadataName {
			add(LabelNamespacePrefix+k, v)
		}
	}
	slices.SortFunc(labels, func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
	return labels
}
