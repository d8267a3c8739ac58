package mcs

import (
	"errors"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/tombolo-mesh/tombolo/clustermesh"
)

// State is all that the import of one service in one cluster depends on.
type State struct {
	Name    clustermesh.ServiceName
	Exports []Export
	// Unknown are clusters of the mesh that nothing was heard of since this process
	// started. What stands here of them stays: silence is not deletion.
	Unknown []string
	// Namespace: it exists in this cluster, and is not about to go.
	Namespace bool
	// As they are; nil = there is none.
	Import  *v1beta1.ServiceImport
	Derived *corev1.Service
	// DerivedError is why the API server does not take the derived Service.
	DerivedError error
}

// Wanted is what should be there. Nil fields are objects that should not be.
type Wanted struct {
	Import  *v1beta1.ServiceImport
	Status  *v1beta1.ServiceImportStatus // of Import, without the times
	Derived *corev1.Service              // needs the Import to be there: it names its UID
	Slices  []*discoveryv1.EndpointSlice // the same
	// Anew: the present derived Service has to go before Derived can be: the first of
	// a Service's families never changes.
	Anew bool
	// Keep: Import, Status and Derived are not to be touched.
	Keep bool
	// KeepSlices are clusters whose slices are not to be touched.
	KeepSlices []string
}

// Decide says what should be there. It is asked again after each step: the
// ServiceImport comes first, as everything else is owned by it; then its derived
// Service, whose addresses the ServiceImport is given in the end.
func Decide(s State) Wanted {
	var w Wanted
	if !s.Namespace {
		return w // none is made for it; one that goes takes everything with it
	}
	w.KeepSlices = s.Unknown
	im, any := Resolve(s.Name, s.Exports)
	if s.Import != nil {
		w.Keep = slices.ContainsFunc(s.Import.Status.Clusters, func(c v1beta1.ClusterStatus) bool { return slices.Contains(s.Unknown, c.Cluster) })
	}
	if !any {
		return w
	}
	w.Import = im.serviceImport(s.Derived)
	w.Status = im.status(s)
	if s.Import == nil {
		return w
	}
	if !im.Headless {
		w.Derived = im.derivedService(s.Import)
		w.Anew = firstFamilyDiffers(s.Derived, w.Derived)
	}
	for _, e := range s.Exports {
		if slices.Contains(im.Clusters, e.Cluster) {
			w.Slices = append(w.Slices, im.endpointSlices(s.Import, e)...)
		}
	}
	return w
}

// firstFamilyDiffers: wanted wants another than present has; where it leaves the
// choice to the API server any will do.
func firstFamilyDiffers(present, wanted *corev1.Service) bool {
	if present == nil || len(present.Spec.IPFamilies) == 0 || len(wanted.Spec.IPFamilies) == 0 {
		return false
	}
	return present.Spec.IPFamilies[0] != wanted.Spec.IPFamilies[0]
}

// status is that of the ServiceImport.
func (im *Import) status(s State) *v1beta1.ServiceImportStatus {
	out := &v1beta1.ServiceImportStatus{EndpointSliceObjects: v1beta1.EndpointSliceObjectsPresent}
	for _, c := range im.Clusters {
		out.Clusters = append(out.Clusters, v1beta1.ClusterStatus{Cluster: c})
	}
	ready := metav1.Condition{Type: string(v1beta1.ServiceImportConditionReady), Status: metav1.ConditionTrue,
		Reason: string(v1beta1.ServiceImportReasonReady), Message: "The service can be used."}
	switch {
	case im.Headless:
	case s.DerivedError != nil:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, string(v1beta1.ServiceImportReasonPending), "Its address cannot be had: "+s.DerivedError.Error()
		if refusedFamily(s.DerivedError) {
			ready.Reason = string(v1beta1.ServiceImportReasonIPFamilyNotSupported)
		}
	case s.Derived == nil || s.Derived.Spec.ClusterIP == "":
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, string(v1beta1.ServiceImportReasonPending), "It is about to be given an address."
	}
	if s.Import != nil {
		ready.ObservedGeneration = s.Import.Generation
	}
	out.Conditions = []metav1.Condition{ready}
	return out
}

// refusedFamily: this cluster has no addresses of the family that is asked for.
func refusedFamily(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool {
		return strings.HasPrefix(c.Field, "spec.ipFamilies") || strings.HasPrefix(c.Field, "spec.ipFamilyPolicy")
	})
}
