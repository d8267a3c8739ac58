package kube

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	meshpeer "github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/v1alpha1"
)

// clusterPolicyBeta is the newer version of ClusterNetworkPolicy: another name
// for the same fields.
var clusterPolicyBeta = schema.GroupVersion{Group: v1alpha2.GroupName, Version: "v1beta1"}

// Scheme holds the API groups that are used, and no more.
var Scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme,
		authenticationv1.AddToScheme, eventsv1.AddToScheme, v1alpha2.Install, meshpeer.AddToScheme, mcsv1beta1.Install,
	} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	s.AddKnownTypes(clusterPolicyBeta, &v1alpha2.ClusterNetworkPolicy{}, &v1alpha2.ClusterNetworkPolicyList{})
	metav1.AddToGroupVersion(s, clusterPolicyBeta)
	return s
}()

// parameters encodes options of requests.
var parameters = runtime.NewParameterCodec(Scheme)

// builtIn are Kubernetes' own groups, which know protobuf.
var builtIn = map[schema.GroupVersion]bool{
	corev1.SchemeGroupVersion: true, discoveryv1.SchemeGroupVersion: true, networkingv1.SchemeGroupVersion: true,
	authenticationv1.SchemeGroupVersion: true, eventsv1.SchemeGroupVersion: true,
}
