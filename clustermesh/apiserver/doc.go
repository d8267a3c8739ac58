// Package apiserver is the mesh API server: Kubernetes objects → records → etcd,
// the mesh port, the admin socket, and the joining of clusters.
//
//	source (folder, Kubernetes) ─► World ─► deriver ─► kvstore.Publisher ─► etcd
//	registrations (any replica) ─► private/<cluster>/… ──┘                   │
//	mesh port, admin socket ◄── watch cache (kvstore.NewReplica) ◄── Follow ─┘
//
// One goroutine, the core, owns the World: the present Kubernetes objects and
// registrations. The replica that holds the leader key derives records from it
// and publishes them; the others serve reads and take registrations.
package apiserver
