// Package kube is all that talks to a kube-apiserver: the clients, the source of
// Kubernetes objects by informers, the review of tokens that nodes register with,
// the ConfigMap that tells agents where the mesh API server is, and Events.
//
// The clients are made of client-go's REST client and its generic typed client,
// over a scheme of the few API groups that are used: the clientset of client-go
// would link all of Kubernetes' API groups (26 MiB of program, 11 MiB of memory).
package kube
