package kube_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube"
	"github.com/tombolo-mesh/tombolo/clustermesh/apiserver/kube/kubetest"
)

const agentUser = "system:serviceaccount:tombolo-system:tombolo-agent"

func jwt(t *testing.T, claims map[string]any) string {
	t.Helper()
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(text) + ".c2ln"
}

func reviewed(user, node, audience string, ok bool) map[string]any {
	extra := map[string]any{}
	if node != "" {
		extra["authentication.kubernetes.io/node-name"] = []any{node}
	}
	return map[string]any{"authenticated": ok, "audiences": []any{audience}, "user": map[string]any{"username": user, "extra": extra}}
}

func TestReviewNode(t *testing.T) {
	s := kubetest.New(t)
	client, err := kube.New(s.Config(), kube.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdle)
	r := kube.NewReviewer(client, "tombolo", "tombolo-system/tombolo-agent")
	plausible := jwt(t, map[string]any{"sub": agentUser, "aud": []string{"tombolo"}, "exp": time.Now().Add(time.Hour).Unix()})
	asked := 0
	for _, c := range []struct {
		name   string
		token  string
		answer map[string]any
		node   string
		code   codes.Code
		why    string
		asks   int
	}{
		{"good", plausible, reviewed(agentUser, "n1", "tombolo", true), "n1", 0, "", 1},
		{"no token", "x", nil, "", codes.Unauthenticated, "no service-account token", 0},
		{"other account", jwt(t, map[string]any{"sub": "system:serviceaccount:a:b", "aud": "tombolo"}), nil, "", codes.Unauthenticated, "another account", 0},
		{"other audience", jwt(t, map[string]any{"sub": agentUser, "aud": "https://kubernetes.default.svc"}), nil, "", codes.Unauthenticated, "not meant for audience", 0},
		{"expired", jwt(t, map[string]any{"sub": agentUser, "aud": "tombolo", "exp": 1}), nil, "", codes.Unauthenticated, "expired", 0},
		{"not accepted", plausible, reviewed(agentUser, "n1", "tombolo", false), "", codes.Unauthenticated, "does not accept", 1},
		{"reviewed for another audience", plausible, reviewed(agentUser, "n1", "api", true), "", codes.PermissionDenied, "not meant for audience", 1},
		{"reviewed as another account", plausible, reviewed("system:serviceaccount:a:b", "n1", "tombolo", true), "", codes.PermissionDenied, "it is of", 1},
		{"bound to no node", plausible, reviewed(agentUser, "", "tombolo", true), "", codes.PermissionDenied, "bound to no node", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked = 0
			s.Review(func(token string, audiences []string) map[string]any {
				asked++
				if token != c.token || len(audiences) != 1 || audiences[0] != "tombolo" {
					t.Errorf("asked about %q for %v", token, audiences)
				}
				return c.answer
			})
			node, err := r.ReviewNode(t.Context(), c.token)
			var refusal *apiserver.Refusal
			if node != c.node || asked != c.asks || (err != nil) != (c.code != 0) {
				t.Fatalf("node %q, %d reviews, %v", node, asked, err)
			}
			if err != nil && (!errors.As(err, &refusal) || refusal.Code != c.code || !strings.Contains(err.Error(), c.why)) {
				t.Errorf("%v, expected code %v and %q", err, c.code, c.why)
			}
		})
	}
	s.Away()
	var refusal *apiserver.Refusal
	if _, err := r.ReviewNode(t.Context(), plausible); !errors.As(err, &refusal) || refusal.Code != codes.Unavailable {
		t.Errorf("API server away: %v", err)
	}
}
