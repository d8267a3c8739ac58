package v1alpha1

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// DeepCopyInto copies into out.
func (in *MeshPeer) DeepCopyInto(out *MeshPeer) {
	*out = *in
	in.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	if in.Spec.TokenSecretRef != nil {
		out.Spec.TokenSecretRef = new(*in.Spec.TokenSecretRef)
	}
	if in.Spec.Invite != nil {
		out.Spec.Invite = new(*in.Spec.Invite)
		if in.Spec.Invite.TTL != nil {
			out.Spec.Invite.TTL = new(*in.Spec.Invite.TTL)
		}
	}
	in.Status.deepCopyInto(&out.Status)
}

func (in *MeshPeerStatus) deepCopyInto(out *MeshPeerStatus) {
	*out = *in
	out.Conditions = slices.Clone(in.Conditions) // holds no pointers
	out.MeshAddresses = slices.Clone(in.MeshAddresses)
	out.PodPrefixes = slices.Clone(in.PodPrefixes)
	if in.UsedSerial != nil {
		out.UsedSerial = new(*in.UsedSerial)
	}
}

// DeepCopy copies.
func (in *MeshPeer) DeepCopy() *MeshPeer {
	out := new(MeshPeer)
	in.DeepCopyInto(out)
	return out
}

// DeepCopyObject implements runtime.Object.
func (in *MeshPeer) DeepCopyObject() runtime.Object { return in.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (in *MeshPeerList) DeepCopyObject() runtime.Object {
	out := &MeshPeerList{TypeMeta: in.TypeMeta, Items: make([]MeshPeer, len(in.Items))}
	in.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range in.Items {
		in.Items[i].DeepCopyInto(&out.Items[i])
	}
	return out
}

var _ metav1.Object = (*MeshPeer)(nil)
