package apiserver

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// securityLabels is what the identity of a pod stands for, sorted by key. ns may
// be nil.
func securityLabels(cluster string, pod *corev1.Pod, ns *corev1.Namespace) []clustermesh.Label {
	var of map[string]string
	if ns != nil {
		of = ns.Labels
	}
	return clustermesh.SecurityLabels(cluster, pod.Namespace, pod.Spec.ServiceAccountName, pod.Labels, of)
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
