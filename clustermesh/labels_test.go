package clustermesh

import (
	"slices"
	"testing"
)

func TestSecurityLabels(t *testing.T) {
	got := SecurityLabels("aws", "shop", "", map[string]string{
		"app": "cart", "pod-template-hash": "6f9", "tombolo.io/cluster": "gcp", "tombolo.io/anything": "x", "zone": "a",
	}, map[string]string{"team": "red", "kubernetes.io/metadata.name": "forged"})
	want := []Label{
		{"app", "cart"}, {"namespace:kubernetes.io/metadata.name", "shop"}, {"namespace:team", "red"},
		{"tombolo.io/cluster", "aws"}, {"tombolo.io/namespace", "shop"}, {"tombolo.io/serviceaccount", "default"}, {"zone", "a"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := SecurityLabels("aws", "shop", "robot", nil, nil); !slices.Contains(got, Label{LabelServiceAccount, "robot"}) || len(got) != 4 {
		t.Errorf("a bare pod: %v", got)
	}
}
