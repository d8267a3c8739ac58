package install

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podSecurity are the labels by which a cluster that enforces the Pod Security
// Standards lets pods on the host network in.
var podSecurity = map[string]string{
	"pod-security.kubernetes.io/enforce": "privileged",
	"pod-security.kubernetes.io/audit":   "privileged",
	"pod-security.kubernetes.io/warn":    "privileged",
}

// makeNamespace makes it, if it is missing. One that is there is the user's: it is
// not changed.
func (c *call) makeNamespace(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.Namespace, Labels: podSecurity}}
	_, err := c.cluster.Client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{FieldManager: "tombolo-install"})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make namespace %s: %w", c.Namespace, err)
	}
	return nil
}
