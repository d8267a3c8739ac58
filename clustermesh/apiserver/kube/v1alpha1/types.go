// Package v1alpha1 are the custom resources of Tombolo, group tombolo.io.
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the one of this package.
var GroupVersion = schema.GroupVersion{Group: "tombolo.io", Version: "v1alpha1"}

// MeshPeers is the resource.
var MeshPeers = GroupVersion.WithResource("meshpeers")

// AddToScheme adds the kinds of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &MeshPeer{}, &MeshPeerList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// MeshPeer is another cluster that this one is to be joined with. Its name is that
// cluster's name; it lives in Tombolo's namespace.
type MeshPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              MeshPeerSpec   `json:"spec,omitempty"`
	Status            MeshPeerStatus `json:"status,omitempty"`
}

// MeshPeerSpec says which side this one is. With neither token nor invitation the
// resource stands for a peer that was joined by hand.
type MeshPeerSpec struct {
	// TokenSecretRef: join the cluster that made the token in this Secret.
	TokenSecretRef *TokenSecretRef `json:"tokenSecretRef,omitempty"`
	// Invite: make a token, and wait for the other cluster to join with it.
	Invite *Invite `json:"invite,omitempty"`
	// DeletionPolicy says what happens to the join when the resource is deleted.
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
}

// TokenSecretRef names a key of a Secret in the same namespace.
type TokenSecretRef struct {
	Name string `json:"name"`
	Key  string `json:"key,omitempty"` // default token
}

// Invite says where the token goes.
type Invite struct {
	// SecretName is the Secret that the token is written into, under the key token;
	// default: the resource's name and "-token". It goes when the other side has joined.
	SecretName string `json:"secretName,omitempty"`
	// TTL is how long a token is good; then another one takes its place. Default 1h.
	TTL *metav1.Duration `json:"ttl,omitempty"`
	// Serial invites anew, when it is changed, a cluster that has left.
	Serial int64 `json:"serial,omitempty"`
}

// DeletionPolicy says what deleting a MeshPeer does.
type DeletionPolicy string

// The policies. Leave is the default.
const (
	Leave  DeletionPolicy = "Leave"  // leave the other cluster; the resource stays until it has been told
	Force  DeletionPolicy = "Force"  // leave although the other cluster cannot be told
	Retain DeletionPolicy = "Retain" // stay joined
)

// Conditions of a MeshPeer.
const (
	Joined    = "Joined"    // both clusters have stored one another
	Reachable = "Reachable" // this mesh API server gets through to that one
	Synced    = "Synced"    // what that cluster says of itself is taken over
)

// MeshPeerStatus is what has become of it.
type MeshPeerStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
	ClusterID          int64              `json:"clusterID,omitempty"`
	// Fingerprint is of the other cluster's CA.
	Fingerprint   string   `json:"fingerprint,omitempty"`
	MeshAddresses []string `json:"meshAddresses,omitempty"`
	PodPrefixes   []string `json:"podPrefixes,omitempty"`
	// UsedToken names the token, or UsedSerial the invitation, by which the join came
	// about: neither serves a second time.
	UsedToken  string `json:"usedToken,omitempty"`
	UsedSerial *int64 `json:"usedSerial,omitempty"`
}

// MeshPeerList is a list.
type MeshPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshPeer `json:"items"`
}
