package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/v1alpha1"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// maxMessage is what the API allows a condition's message.
const maxMessage = 32 << 10

func setCondition(mp *v1alpha1.MeshPeer, kind string, status metav1.ConditionStatus, reason, message string) {
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "")
	}
	meta.SetStatusCondition(&mp.Status.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: mp.Generation})
}

func setJoined(mp *v1alpha1.MeshPeer, yes bool, reason, message string) {
	status := metav1.ConditionFalse
	if yes {
		status = metav1.ConditionTrue
	}
	setCondition(mp, v1alpha1.Joined, status, reason, message)
}

// setNotJoined: of a cluster that is no peer the rest is not known. What was said of
// Joined stays until there is something new to say.
func (p *Peers) setNotJoined(mp *v1alpha1.MeshPeer) {
	if c := meta.FindStatusCondition(mp.Status.Conditions, v1alpha1.Joined); c == nil || c.Status == metav1.ConditionTrue || c.ObservedGeneration != mp.Generation {
		setJoined(mp, false, "NotJoined", "the clusters are not joined")
	}
	for _, kind := range []string{v1alpha1.Reachable, v1alpha1.Synced} {
		setCondition(mp, kind, metav1.ConditionUnknown, "NotJoined", "the clusters are not joined")
	}
}

// joinedOnce: it was a peer before.
func joinedOnce(mp *v1alpha1.MeshPeer) bool { return mp.Status.Fingerprint != "" }

// setStatus says what is so of a peer.
func setStatus(mp *v1alpha1.MeshPeer, peer *pb.PeerStatus, st *pb.StatusResponse) {
	setJoined(mp, true, "Joined", "both clusters have stored one another")
	if peer.Reachable {
		setCondition(mp, v1alpha1.Reachable, metav1.ConditionTrue, "Connected", "its mesh port answers")
	} else {
		why := peer.Error
		if why == "" {
			why = "it has not answered yet"
		}
		setCondition(mp, v1alpha1.Reachable, metav1.ConditionFalse, "Unreachable", why)
	}
	believed := slices.IndexFunc(st.Problems, func(q *pb.Problem) bool {
		return q.Object == "peer "+mp.Name && strings.HasPrefix(q.What, "its cluster record")
	})
	switch {
	case believed >= 0:
		q := st.Problems[believed]
		setCondition(mp, v1alpha1.Synced, metav1.ConditionFalse, "NotBelieved", fmt.Sprintf("%s: %s; %s", q.What, q.Why, q.Fix))
	case peer.Reachable:
		setCondition(mp, v1alpha1.Synced, metav1.ConditionTrue, "Synced", "what it says of itself is taken over")
	case peer.LastSeen != 0:
		setCondition(mp, v1alpha1.Synced, metav1.ConditionFalse, "Stale", "what it said last stays in force")
	default:
		setCondition(mp, v1alpha1.Synced, metav1.ConditionFalse, "Waiting", "it has not been reached since this mesh API server leads")
	}
	mp.Status.ClusterID = int64(peer.Peer.GetId())
	mp.Status.Fingerprint = peer.Fingerprint
	mp.Status.MeshAddresses = slices.Clone(peer.Peer.GetMeshAddresses())
	mp.Status.PodPrefixes = nil
	for _, p := range peer.Peer.GetPodPrefixes() {
		if a, ok := netip.AddrFromSlice(p.Address); ok {
			mp.Status.PodPrefixes = append(mp.Status.PodPrefixes, netip.PrefixFrom(a.Unmap(), int(p.Bits)).String())
		}
	}
}

func hasFinalizer(mp *v1alpha1.MeshPeer) bool { return slices.Contains(mp.Finalizers, leaveFinalizer) }

// meshPeerStatus is a MeshPeer as the status of the mesh API server tells it.
func meshPeerStatus(mp *v1alpha1.MeshPeer) *pb.MeshPeerStatus {
	out := &pb.MeshPeerStatus{Name: mp.Name, Wish: "stands", Leaving: mp.DeletionTimestamp != nil}
	switch {
	case mp.Spec.TokenSecretRef != nil:
		out.Wish = "joins"
	case mp.Spec.Invite != nil:
		out.Wish = "invites"
	}
	if !mp.CreationTimestamp.IsZero() {
		out.Created = mp.CreationTimestamp.UnixNano()
	}
	for _, c := range mp.Status.Conditions {
		out.Conditions = append(out.Conditions, &pb.Condition{
			Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message, Since: c.LastTransitionTime.UnixNano(),
		})
	}
	return out
}
