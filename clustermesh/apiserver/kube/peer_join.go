package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/v1alpha1"
	"github.com/tombolo-mesh/tombolo/clustermesh/pb"
)

// bringAbout does what is to be done for a peer that is not there, and says so in
// the status. A join that came about once by the same token or invitation is not
// repeated: somebody has ended it.
func (p *Peers) bringAbout(ctx context.Context, mp *v1alpha1.MeshPeer) (joined bool, err error) {
	p.setNotJoined(mp)
	switch {
	case mp.Spec.TokenSecretRef != nil:
		return p.join(ctx, mp)
	case mp.Spec.Invite != nil:
		return false, p.invite(ctx, mp)
	case joinedOnce(mp):
		setJoined(mp, false, "Left", "the clusters are no longer joined; join them again, or delete this resource")
	default:
		setJoined(mp, false, "NotJoined", "no cluster of this name is joined; set tokenSecretRef or invite, or run tombolo mesh join")
	}
	return false, nil
}

// join joins by the token of the Secret. Ended between the join and the note of it,
// the next pass finds the peer and does not come here.
func (p *Peers) join(ctx context.Context, mp *v1alpha1.MeshPeer) (joined bool, err error) {
	ref := mp.Spec.TokenSecretRef
	key := cmp.Or(ref.Key, "token")
	secret, err := p.client.Secrets(mp.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		setJoined(mp, false, "NoToken", fmt.Sprintf("Secret %s does not exist; put the token of the other cluster into it, under the key %s", ref.Name, key))
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the token: %w", err)
	}
	text := strings.TrimSpace(string(secret.Data[key]))
	if text == "" {
		setJoined(mp, false, "NoToken", fmt.Sprintf("Secret %s has no key %s; put the token of the other cluster under it", ref.Name, key))
		return false, nil
	}
	token, err := certs.ParseToken(text)
	switch {
	case err != nil:
		setJoined(mp, false, "BadToken", fmt.Sprintf("Secret %s, key %s: %v; put in what `tombolo mesh invite` printed", ref.Name, key, err))
		return false, nil
	case token.Cluster != mp.Name:
		setJoined(mp, false, "WrongCluster", fmt.Sprintf("the token is of cluster %s: name this resource so, or put in a token of cluster %s", token.Cluster, mp.Name))
		return false, nil
	case mp.Status.UsedToken == token.ID:
		setJoined(mp, false, "Left", "the clusters were joined by this token and are no longer; put a new token into Secret "+ref.Name+" to join again")
		return false, nil
	}
	// A changed spec is a wish to try at once.
	attempt := fmt.Sprintf("%s/%d", token.ID, mp.Generation)
	if !p.due(mp.Name, attempt) {
		return false, nil
	}
	if _, err := p.mesh.JoinMesh(ctx, &pb.JoinMeshRequest{Token: text}); err != nil {
		if ctx.Err() != nil {
			return false, nil
		}
		p.failed(mp.Name, attempt)
		setJoined(mp, false, refusalReason(err), err.Error())
		return false, nil
	}
	p.log.Info("joined as a MeshPeer says", "cluster", mp.Name)
	mp.Status.UsedToken = token.ID
	return true, nil
}

// refusalReason is the class of a refusal; its words are in the message.
func refusalReason(err error) string {
	r := apiserver.AsRefusal(err)
	switch {
	case r == nil:
		return "Failed"
	case r.Code == codes.Unavailable:
		return "Unreachable"
	case r.Code == codes.Unauthenticated || r.Code == codes.PermissionDenied:
		return "TokenRefused"
	}
	return "Refused"
}

// invite keeps a token that is good in the Secret until the other side has used it.
func (p *Peers) invite(ctx context.Context, mp *v1alpha1.MeshPeer) error {
	inv := mp.Spec.Invite
	if mp.Status.UsedSerial != nil && *mp.Status.UsedSerial == inv.Serial {
		setJoined(mp, false, "Left", "the clusters were joined by this invitation and are no longer; change spec.invite.serial to invite again")
		return nil
	}
	secrets, name := p.client.Secrets(mp.Namespace), inviteSecret(mp)
	secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
	absent := apierrors.IsNotFound(err)
	switch {
	case err != nil && !absent:
		return fmt.Errorf("read the Secret of the token: %w", err)
	case !absent && !metav1.IsControlledBy(secret, mp):
		setJoined(mp, false, "SecretTaken", "Secret "+name+" is not this resource's; give another spec.invite.secretName")
		return nil
	case !absent:
		if t, err := certs.ParseToken(string(secret.Data["token"])); err == nil && time.Until(t.Expires) > p.look {
			setJoined(mp, false, "Invited", invitedText(name, t.Expires))
			return nil
		}
	}
	ttl := time.Hour
	if inv.TTL != nil {
		ttl = inv.TTL.Duration
	}
	res, err := p.mesh.Invite(ctx, &pb.InviteRequest{TtlSeconds: int64(ttl.Seconds())})
	if err != nil {
		setJoined(mp, false, refusalReason(err), err.Error())
		return nil
	}
	fresh := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: mp.Namespace, Labels: map[string]string{partOfLabel: "tombolo"},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(mp, v1alpha1.GroupVersion.WithKind("MeshPeer"))}},
		Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"token": []byte(res.Token)},
	}
	if absent {
		_, err = secrets.Create(ctx, fresh, metav1.CreateOptions{})
	} else {
		fresh.ObjectMeta = secret.ObjectMeta
		_, err = secrets.Update(ctx, fresh, metav1.UpdateOptions{})
	}
	if err != nil {
		// Nobody has it; if this fails, too, it goes at its end.
		return errors.Join(fmt.Errorf("write the token: %w", err), p.withdraw(ctx, []byte(res.Token)))
	}
	setJoined(mp, false, "Invited", invitedText(name, time.Unix(0, res.Expires)))
	return nil
}

func invitedText(secret string, until time.Time) string {
	return fmt.Sprintf("the token in Secret %s, good until %s, waits for the other cluster to join with it", secret, until.UTC().Format(time.RFC3339))
}

func inviteSecret(mp *v1alpha1.MeshPeer) string {
	return cmp.Or(mp.Spec.Invite.SecretName, mp.Name+"-token")
}

// joined says what is so of a peer that is there, and takes the used token away.
func (p *Peers) joined(ctx context.Context, mp *v1alpha1.MeshPeer, peer *pb.PeerStatus, st *pb.StatusResponse) error {
	delete(p.tries, mp.Name)
	setStatus(mp, peer, st)
	switch {
	case mp.Spec.TokenSecretRef != nil && mp.Status.UsedToken == "":
		return p.noteToken(ctx, mp)
	case mp.Spec.Invite != nil:
		mp.Status.UsedSerial = &mp.Spec.Invite.Serial
		return p.uninvite(ctx, mp)
	}
	return nil
}

// uninvite takes an invitation back.
func (p *Peers) uninvite(ctx context.Context, mp *v1alpha1.MeshPeer) error {
	secret, err := p.client.Secrets(mp.Namespace).Get(ctx, inviteSecret(mp), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take the Secret of the token away: %w", err)
	}
	return p.takeBack(ctx, mp, secret)
}

// takeBack ends a token, if it was not used (the clusters may have been joined by
// another one), and then removes its Secret, so that a crash between the two leaves
// what is needed to go on. A Secret that is not the resource's stays.
func (p *Peers) takeBack(ctx context.Context, mp *v1alpha1.MeshPeer, secret *corev1.Secret) error {
	if !metav1.IsControlledBy(secret, mp) {
		return nil
	}
	if err := p.withdraw(ctx, secret.Data["token"]); err != nil {
		return err
	}
	err := p.client.Secrets(mp.Namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &secret.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take the Secret of the token away: %w", err)
	}
	return nil
}

// uninviteOthers takes back what was written for an earlier spec: under another
// name, or when the resource still invited. keep is the name that is in use.
func (p *Peers) uninviteOthers(ctx context.Context, mp *v1alpha1.MeshPeer, keep string) error {
	list, err := p.client.Secrets(mp.Namespace).List(ctx, metav1.ListOptions{LabelSelector: ourSecrets})
	if err != nil {
		return fmt.Errorf("look for Secrets of tokens: %w", err)
	}
	for i := range list.Items {
		if secret := &list.Items[i]; secret.Name != keep {
			err = errors.Join(err, p.takeBack(ctx, mp, secret))
		}
	}
	return err
}

// ourSecrets selects the Secrets that are written here.
const ourSecrets = partOfLabel + "=tombolo"

const partOfLabel = "app.kubernetes.io/part-of"

// withdraw ends a token before its time.
func (p *Peers) withdraw(ctx context.Context, text []byte) error {
	t, err := certs.ParseToken(strings.TrimSpace(string(text)))
	if err != nil {
		return nil // no token of ours
	}
	if err := p.mesh.Withdraw(ctx, t.ID); err != nil {
		return fmt.Errorf("withdraw the token: %w", err)
	}
	return nil
}

// noteToken notes the token of a join that ended before its note.
func (p *Peers) noteToken(ctx context.Context, mp *v1alpha1.MeshPeer) error {
	ref := mp.Spec.TokenSecretRef
	secret, err := p.client.Secrets(mp.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	if t, err := certs.ParseToken(strings.TrimSpace(string(secret.Data[cmp.Or(ref.Key, "token")]))); err == nil && t.Cluster == mp.Name {
		mp.Status.UsedToken = t.ID
	}
	return nil
}

// delete leaves, as far as the policy says, and lets the resource go.
func (p *Peers) delete(ctx context.Context, mp *v1alpha1.MeshPeer, st *pb.StatusResponse) (*v1alpha1.MeshPeer, error) {
	if !hasFinalizer(mp) {
		return mp, nil
	}
	if err := p.uninviteOthers(ctx, mp, ""); err != nil {
		return mp, err
	}
	before := mp.Status
	policy := cmp.Or(mp.Spec.DeletionPolicy, v1alpha1.Leave)
	if policy != v1alpha1.Retain && findPeer(st, mp.Name) != nil {
		of := "leave " + string(policy)
		if !p.due(mp.Name, of) {
			return mp, nil
		}
		_, err := p.mesh.RemovePeer(ctx, &pb.RemovePeerRequest{Cluster: mp.Name, Force: policy == v1alpha1.Force})
		if r := apiserver.AsRefusal(err); err != nil && (r == nil || r.Code != codes.NotFound) {
			if ctx.Err() != nil {
				return mp, nil
			}
			p.failed(mp.Name, of)
			next := mp.DeepCopy()
			setCondition(next, v1alpha1.Joined, metav1.ConditionTrue, "CannotLeave", err.Error()+"; or set spec.deletionPolicy to Force or Retain")
			return next, p.writeStatus(ctx, next, before)
		}
	}
	next := mp.DeepCopy()
	next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == leaveFinalizer })
	if _, err := p.client.meshPeers(mp.Namespace).Update(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return mp, fmt.Errorf("finalizer: %w", err)
	}
	return next, nil
}
