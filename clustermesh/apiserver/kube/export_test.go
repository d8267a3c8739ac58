package kube

import "k8s.io/apimachinery/pkg/runtime"

// Trimmed is what the source leaves of an object of a kind.
func Trimmed(kind string, o runtime.Object) runtime.Object {
	for _, k := range sourceKinds {
		if k.name == kind && k.trim != nil {
			return k.trim(o)
		}
	}
	return o
}
