package apiserver

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// Keys of security labels that are not pod labels. No pod can set them: pod
// labels under tombolo.io/ are left out, and no label key has a colon.
const (
	LabelCluster         = "tombolo.io/cluster"
	LabelNamespace       = "tombolo.io/namespace"
	LabelServiceAccount  = "tombolo.io/serviceaccount"
	LabelNamespacePrefix = "namespace:" // before the key of a label of the namespace
)

// fleeting labels differ from pod to pod or from rollout to rollout: an identity
// of each would say nothing and there would be as many as pods.
var fleeting = map[string]bool{
	"pod-template-hash": true, "pod-template-generation": true, "controller-revision-hash": true,
	"controller-uid": true, "batch.kubernetes.io/controller-uid": true,
}

// securityLabels is what the identity of a pod stands for, sorted by key. ns may
// be nil: the namespace then has no label but its name.
func securityLabels(cluster string, pod *corev1.Pod, ns *corev1.Namespace) []clustermesh.Label {
	labels := make([]clustermesh.Label, 0, len(pod.Labels)+5)
	add := func(key, value string) { labels = append(labels, clustermesh.Label{Key: key, Value: value}) }
	for k, v := range pod.Labels {
		if !fleeting[k] && !strings.HasPrefix(k, annotationPrefix) {
			add(k, v)
		}
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	add(LabelCluster, cluster)
	add(LabelNamespace, pod.Namespace)
	add(LabelServiceAccount, account)
	// Every Kubernetes sets this one, and policies select by it.
	add(LabelNamespacePrefix+corev1.LabelMetadataName, pod.Namespace)
	if ns != nil {
		for k, v := range ns.Labels {
			if k != corev1.LabelMetadataName {
				add(LabelNamespacePrefix+k, v)
			}
		}
	}
	slices.SortFunc(labels, func(a, b clustermesh.Label) int { return strings.Compare(a.Key, b.Key) })
	return labels
}

// labelText is a label set as one string, by which its number is kept. Neither
// keys nor values can hold a line break.
func labelText(labels []clustermesh.Label) string {
	var b strings.Builder
	for _, l := range labels {
		b.WriteString(l.Key)
		b.WriteByte('=')
		b.WriteString(l.Value)
		b.WriteByte('\n')
	}
	return b.String()
}

// parseLabelText undoes labelText.
func parseLabelText(text string) []clustermesh.Label {
	var labels []clustermesh.Label
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		labels = append(labels, clustermesh.Label{Key: k, Value: v})
	}
	return labels
}
