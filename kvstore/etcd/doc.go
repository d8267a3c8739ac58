// Package etcd connects kvstore with the etcd v3 API, both ways: Store is a
// kvstore.Store on an etcd (or on anything that speaks the read half of its
// API), and Server is that read half in front of a kvstore.Memory.
//
// A Store never reconnects behind its caller's back and never passes on an
// answer of another store than the one asked for: the cluster ID in the header
// of each response is the StoreID of kvstore.Position and is compared each time.
//
// A Server only reads. What a caller may read is decided for each call by
// ServerConfig.Authorize; without an answer from it nothing is served.
package etcd
