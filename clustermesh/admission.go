package clustermesh

import "net/netip"

// Admission is what is believed of one cluster.
type Admission struct {
	Cluster     string
	ID          ID
	PodPrefixes []netip.Prefix // nothing outside them is believed; empty with Local: not checked
	MaxKeys     uint64         // 0 = DefaultMaxKeys
	MaxBytes    uint64         // 0 = DefaultMaxBytes
	Local       bool           // the reader's own cluster: scope local too
}

// Check says why a record is not believed; nil = believed. It looks at the record alone.
func (a Admission) Check(k Key, r Record) error { return nil }

// Refusal is a record that was not believed.
type Refusal struct {
	Key    string
	Reason string
}

// Problem is something that keeps two clusters from joining.
type Problem struct{ What, Why, Fix string }

// Conflicts are the reasons against joining own with candidate.
func Conflicts(own *Cluster, others []*Peer, candidate *Cluster) []Problem { return nil }
