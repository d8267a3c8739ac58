package mcs

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// ExportState is what the conditions of a ServiceExport depend on.
type ExportState struct {
	Export    *v1beta1.ServiceExport
	Service   *corev1.Service      // of the same name; nil = there is none
	Cluster   string               // the own one
	Published *clustermesh.Service // the own record that other clusters see, if any
	Import    *Import              // what it is part of; nil = not known yet
}

// Conditions are those of a ServiceExport, without the times.
func Conditions(s ExportState) []metav1.Condition {
	valid := condition(v1beta1.ServiceExportConditionValid, metav1.ConditionTrue, v1beta1.ServiceExportReasonValid, "The Service can be exported.")
	var ready metav1.Condition
	switch {
	case s.Service == nil:
		valid = condition(v1beta1.ServiceExportConditionValid, metav1.ConditionFalse, v1beta1.ServiceExportReasonNoService,
			fmt.Sprintf("There is no Service %s in namespace %s.", s.Export.Name, s.Export.Namespace))
	case Exportable(s.Service) != "":
		valid = condition(v1beta1.ServiceExportConditionValid, metav1.ConditionFalse, v1beta1.ServiceExportReasonInvalidServiceType, sentence(Exportable(s.Service)))
	}
	wanted, err := (*clustermesh.Export)(nil), error(nil)
	if valid.Status == metav1.ConditionTrue {
		wanted, err = Record(s.Export, s.Service)
	}
	published := s.Published != nil && s.Published.Export != nil
	switch {
	case valid.Status == metav1.ConditionFalse:
		ready = condition(v1beta1.ServiceExportConditionReady, metav1.ConditionFalse, v1beta1.ServiceExportReasonFailed, "Nothing is exported: see condition Valid.")
	case err != nil:
		ready = condition(v1beta1.ServiceExportConditionReady, metav1.ConditionFalse, v1beta1.ServiceExportReasonFailed, sentence(err.Error()+"; what was exported before stays so"))
	case !published:
		ready = condition(v1beta1.ServiceExportConditionReady, metav1.ConditionFalse, v1beta1.ServiceExportReasonPending, "The Service is about to be shown to the other clusters.")
	case !sameExport(wanted, s.Published.Export):
		ready = condition(v1beta1.ServiceExportConditionReady, metav1.ConditionFalse, v1beta1.ServiceExportReasonPending, "A change is about to be shown to the other clusters.")
	default:
		ready = condition(v1beta1.ServiceExportConditionReady, metav1.ConditionTrue, v1beta1.ServiceExportReasonExported, "The other clusters of the mesh can see the Service.")
	}
	out := []metav1.Condition{valid, ready}
	if published && s.Import != nil {
		out = append(out, s.Import.conflictCondition())
	}
	for i := range out {
		out[i].ObservedGeneration = s.Export.Generation
	}
	return out
}

// sameExport: what the ServiceExport itself says, not what the Service does, which
// may be on its way for reasons of its own.
func sameExport(a, b *clustermesh.Export) bool {
	return slices.Equal(a.Labels, b.Labels) && slices.Equal(a.Annotations, b.Annotations)
}

// conflictCondition is that of every export of the service.
func (im *Import) conflictCondition() metav1.Condition {
	if len(im.Conflicts) == 0 {
		return condition(v1beta1.ServiceExportConditionConflict, metav1.ConditionFalse, v1beta1.ServiceExportReasonNoConflicts, "All clusters that export the Service agree.")
	}
	var reasons, messages []string
	for _, c := range im.Conflicts {
		reasons = append(reasons, string(c.Reason))
		messages = append(messages, c.Message)
	}
	text := strings.Join(messages, " ")
	if len(text) > 4096 {
		text = text[:4096]
	}
	return condition(v1beta1.ServiceExportConditionConflict, metav1.ConditionTrue, v1beta1.ServiceExportConditionReason(strings.Join(reasons, ",")), text)
}

func condition(kind v1beta1.ServiceExportConditionType, status metav1.ConditionStatus, reason v1beta1.ServiceExportConditionReason, message string) metav1.Condition {
	return metav1.Condition{Type: string(kind), Status: status, Reason: string(reason), Message: message}
}

// sentence begins with a capital and ends in a full stop, as conditions do.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
