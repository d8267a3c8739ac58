package kube

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
)

// nodeNameExtra is where a TokenReview tells the node of the pod that a token is
// bound to. Kubernetes puts it there since 1.30.
const nodeNameExtra = "authentication.kubernetes.io/node-name"

// Reviewer has service-account tokens of nodes' agents reviewed by the API server.
type Reviewer struct {
	client   *Client
	audience string
	user     string // as TokenReview names the service account
	// Strangers may send anything: what cannot be a token for us is not passed on,
	// and what could be is passed on at this rate.
	limit *rate.Limiter
}

// NewReviewer makes a Reviewer: tokens must be meant for audience, and be of the
// service account, which is namespace/name.
func NewReviewer(c *Client, audience, account string) *Reviewer {
	return &Reviewer{client: c, audience: audience, user: "system:serviceaccount:" + strings.ReplaceAll(account, "/", ":"), limit: rate.NewLimiter(20, 100)}
}

const (
	tokenRefused = "service-account token refused"
	tokenFix     = "mount a projected service-account token into the agent's pod, as Tombolo's chart does"
	maxToken     = 16 << 10
)

// ReviewNode is apiserver.Config's.
func (r *Reviewer) ReviewNode(ctx context.Context, token string) (string, error) {
	if why := r.implausible(token, time.Now()); why != "" {
		return "", apiserver.Refuse(codes.Unauthenticated, tokenRefused, tokenFix, "%s", why)
	}
	if !r.limit.Allow() {
		return "", apiserver.Refuse(codes.Unavailable, tokenRefused, "it is tried again by itself", "too many registrations at once")
	}
	ctx, cancel := context.WithTimeout(ctx, RequestTime)
	defer cancel()
	answer, err := r.client.TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{r.audience}},
	}, metav1.CreateOptions{})
	if apierrors.IsForbidden(err) {
		return "", apiserver.Refuse(codes.FailedPrecondition, "service-account token not reviewed", "give the mesh API server's ServiceAccount the right to create tokenreviews (API group \"authentication.k8s.io\")", "%s", reason(err))
	}
	if err != nil {
		return "", apiserver.Refuse(codes.Unavailable, "service-account token not reviewed", "it is tried again by itself; see that the Kubernetes API can be reached", "%s", reason(err))
	}
	return r.judge(answer.Status)
}

// judge reads the answer of a review. Pure.
func (r *Reviewer) judge(s authenticationv1.TokenReviewStatus) (string, error) {
	refuse := func(code codes.Code, fix, why string, args ...any) (string, error) {
		return "", apiserver.Refuse(code, tokenRefused, fix, why, args...)
	}
	if !s.Authenticated {
		return refuse(codes.Unauthenticated, tokenFix, "Kubernetes does not accept it: %.200q", s.Error)
	}
	if !slices.Contains(s.Audiences, r.audience) {
		return refuse(codes.PermissionDenied, tokenFix, "it is not meant for audience %q", r.audience)
	}
	if s.User.Username != r.user {
		return refuse(codes.PermissionDenied, "register nodes with tokens of "+r.user+", or change --agent-service-account", "it is of %q", s.User.Username)
	}
	nodes := s.User.Extra[nodeNameExtra]
	if len(nodes) != 1 || nodes[0] == "" {
		return refuse(codes.PermissionDenied, "use the projected token of a pod, on Kubernetes 1.30 or later", "it is bound to no node")
	}
	return nodes[0], nil
}

// implausible says why a text cannot be a token that a review would accept. It
// verifies nothing.
func (r *Reviewer) implausible(token string, now time.Time) string {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return "it is no service-account token"
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Subject  string   `json:"sub"`
		Audience audience `json:"aud"`
		Expires  float64  `json:"exp"`
	}
	if err == nil {
		err = json.Unmarshal(text, &claims)
	}
	switch {
	case err != nil:
		return "it is no service-account token"
	case claims.Subject != r.user:
		return "it is of another account than " + r.user
	case !slices.Contains(claims.Audience, r.audience):
		return "it is not meant for audience " + r.audience
	case claims.Expires != 0 && float64(now.Unix()) > claims.Expires:
		return "it has expired"
	}
	return ""
}

// audience is one text or a list of them.
type audience []string

func (a *audience) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*a = audience{one}
		return nil
	}
	var list []string
	if err := json.Unmarshal(text, &list); err != nil {
		return errors.New("aud is neither a text nor a list of texts")
	}
	*a = list
	return nil
}
