package kube_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tombolo-mesh/tombolo/certs"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
)

func testClient(t *testing.T, s *kubetest.Server) *kube.Client {
	t.Helper()
	c, err := kube.New(s.Config(), kube.Config{Namespace: "tombolo-system"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func freshCA(t *testing.T) apiserver.CAText {
	t.Helper()
	chain, key, err := certs.MakeCA("aws", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return apiserver.CAText{Chain: chain, Key: key}
}

// Of several replicas that make a CA at once, one has its way with all.
func TestCASecretIsMadeOnce(t *testing.T) {
	s := kubetest.New(t)
	client := testClient(t, s)
	var got [5]apiserver.CAText
	var all sync.WaitGroup
	for i := range got {
		fresh := freshCA(t)
		all.Go(func() {
			keeper := kube.NewCASecret(client, "ca", "aws", false)
			if _, err := keeper.Get(t.Context()); err != nil && !errors.Is(err, apiserver.ErrNoCA) {
				t.Error(err)
			}
			var err error
			if got[i], err = keeper.Make(t.Context(), fresh); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, text := range got {
		if !bytes.Equal(text.Chain, got[0].Chain) || !bytes.Equal(text.Key, got[0].Key) || len(text.Chain) == 0 {
			t.Error("the replicas have different CAs")
		}
	}
}

// What cert-manager writes is read: first nothing, then a certificate with its
// issuer in ca.crt; a renewal is told of.
func TestSuppliedCASecret(t *testing.T) {
	s := kubetest.New(t)
	client := testClient(t, s)
	keeper := kube.NewCASecret(client, "ca", "aws", true)
	if _, err := keeper.Get(t.Context()); !errors.Is(err, apiserver.ErrNoCA) || !strings.Contains(err.Error(), "Secret tombolo-system/ca does not exist") {
		t.Error(err)
	}
	changed := make(chan struct{}, 64)
	go keeper.Follow(t.Context(), func() { changed <- struct{}{} })
	<-changed
	ca := freshCA(t)
	secrets := client.Secrets("tombolo-system")
	made, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "ca", Namespace: "tombolo-system"}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{"tls.crt": ca.Chain, "tls.key": ca.Key, "ca.crt": ca.Chain}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-changed
	text, err := keeper.Get(t.Context())
	if err != nil || !bytes.Equal(text.Chain, ca.Chain) || len(text.Roots) != 0 {
		t.Errorf("%v, further roots %q", err, text.Roots)
	}
	other := freshCA(t)
	made.Data["ca.crt"] = append(bytes.Clone(ca.Chain), other.Chain...)
	if made, err = secrets.Update(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	<-changed
	if text, err = keeper.Get(t.Context()); err != nil || !bytes.Equal(text.Roots, other.Chain) {
		t.Errorf("%v, further roots %q", err, text.Roots)
	}
	made.Annotations = map[string]string{"tombolo.io/cluster": "gcp"}
	if _, err = secrets.Update(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = keeper.Get(t.Context())
	var unusable *apiserver.UnusableCA
	if !errors.As(err, &unusable) || !strings.Contains(err.Error(), `holds the CA of cluster "gcp", not of "aws"`) || !strings.Contains(unusable.Fix, "--ca-secret") {
		t.Error(err)
	}
}
