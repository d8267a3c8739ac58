// Package apiserver is the mesh API server: Kubernetes objects → records → etcd,
// the mesh port, the admin socket, and the joining of clusters.
//
//	source (folder, Kubernetes) ─► World ─► deriver ─► kvstore.Publisher ─► etcd
//	registrations (any replica) ─► private/<cluster>/… ──┘                   │
//	mesh port, admin socket ◄── watch cache (kvstore.NewReplica) ◄── Follow ─┘
//
// Between the store and the watch cache stands a gate: a store that was replaced,
// emptied or restored under a running server is shown to readers only once it
// holds a complete publication made since. What the store alone knows
// (registrations, numbers, tokens, peers) is copied to the state directory, and
// put back by the leader before anything is published. Between the source and
// the deriver stands a guard against objects that vanish in a mass.
//
// One goroutine, the core, owns the World: the present Kubernetes objects and
// registrations. The replica that holds the leader key derives records from it
// and publishes them; the others serve reads and take registrations.
package apiserver
