package kube

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// caRoots is where a CA Secret holds the issuer's certificates: cert-manager's name.
const caRoots = "ca.crt"

// CASecret keeps a cluster's CA in a Secret of type kubernetes.io/tls in Tombolo's
// namespace: tls.crt (the certificate that signs, and issuers above it), tls.key, and
// ca.crt (the root above, further roots). That is what cert-manager writes for a
// Certificate with isCA.
type CASecret struct {
	client   *Client
	name     string
	cluster  string
	supplied bool
}

// NewCASecret makes a keeper. supplied: somebody else, such as cert-manager, writes
// the Secret.
func NewCASecret(client *Client, name, cluster string, supplied bool) *CASecret {
	return &CASecret{client, name, cluster, supplied}
}

func (s *CASecret) String() string { return "Secret " + s.client.Namespace + "/" + s.name }

// Supplied says whether somebody else writes the Secret.
func (s *CASecret) Supplied() bool { return s.supplied }

// Get reads the Secret.
func (s *CASecret) Get(ctx context.Context) (apiserver.CAText, error) {
	ctx, cancel := context.WithTimeout(ctx, RequestTime)
	defer cancel()
	secret, err := s.client.Secrets(s.client.Namespace).Get(ctx, s.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return apiserver.CAText{}, fmt.Errorf("%w: %s does not exist", apiserver.ErrNoCA, s)
	}
	if err != nil {
		return apiserver.CAText{}, fmt.Errorf("read %s: %w", s, err)
	}
	return s.text(secret)
}

// text is what a Secret holds. One whose issuer has not filled it yet holds none.
func (s *CASecret) text(secret *corev1.Secret) (apiserver.CAText, error) {
	cert, key := secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
	if len(cert) == 0 && len(key) == 0 && s.supplied {
		return apiserver.CAText{}, fmt.Errorf("%w: %s is empty so far", apiserver.ErrNoCA, s)
	}
	if len(cert) == 0 || len(key) == 0 {
		return apiserver.CAText{}, s.unusable("put both into it, or delete it to have it made", "%s lacks %s or %s", s, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	if made := secret.Annotations[clusterAnnotation]; made != "" && made != s.cluster {
		return apiserver.CAText{}, s.unusable("name another Secret with --ca-secret, or start this server with the name of that cluster", "%s holds the CA of cluster %q, not of %q", s, made, s.cluster)
	}
	chain, roots, err := certs.ChainWith(cert, secret.Data[caRoots])
	if err != nil {
		return apiserver.CAText{}, s.unusable("correct its "+corev1.TLSCertKey+" and "+caRoots, "%s: %w", s, err)
	}
	return apiserver.CAText{Chain: chain, Key: key, Roots: roots}, nil
}

func (s *CASecret) unusable(fix, why string, args ...any) error {
	return &apiserver.UnusableCA{Err: fmt.Errorf(why, args...), Fix: fix}
}

// clusterAnnotation names the cluster that an object was made for.
const clusterAnnotation = "tombolo.io/cluster"

// Make creates the Secret. Of several replicas at once one succeeds, and all return
// what that one made.
func (s *CASecret) Make(ctx context.Context, text apiserver.CAText) (apiserver.CAText, error) {
	ctx, cancel := context.WithTimeout(ctx, RequestTime)
	defer cancel()
	roots := text.Roots
	if len(roots) == 0 {
		roots = text.Chain
	}
	_, err := s.client.Secrets(s.client.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: s.name, Namespace: s.client.Namespace,
			Labels:      map[string]string{"app.kubernetes.io/name": "tombolo-apiserver", "app.kubernetes.io/part-of": "tombolo"},
			Annotations: map[string]string{clusterAnnotation: s.cluster},
		},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: text.Chain, corev1.TLSPrivateKeyKey: text.Key, caRoots: roots},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return apiserver.CAText{}, fmt.Errorf("make %s: %w", s, err)
	}
	return s.Get(ctx)
}

// Follow watches the Secret.
func (s *CASecret) Follow(ctx context.Context, changed func()) {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		began := time.Now()
		s.watch(ctx, changed)
		if time.Since(began) > time.Minute {
			wait = time.Second
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// watch watches until the API server ends it. Whatever was missed before is looked
// at once it is under way.
func (s *CASecret) watch(ctx context.Context, changed func()) {
	w, err := s.client.Secrets(s.client.Namespace).Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", s.name).String()})
	if err != nil {
		return // Get says why
	}
	defer w.Stop()
	changed()
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-w.ResultChan():
			if !open {
				return
			}
			changed()
		}
	}
}
