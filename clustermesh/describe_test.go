package clustermesh

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-mesh/tombolo/certs"
)

// The CA of a record reads as it does in status, tokens and `mesh list`.
func TestDescribeCA(t *testing.T) {
	var bundles [][]byte
	var fingerprints []string
	for _, name := range []string{"aws", "gcp"} {
		ca, err := certs.OpenCA(t.TempDir(), name, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		bundles, fingerprints = append(bundles, ca.Bundle()), append(fingerprints, ca.Fingerprint()[:16])
	}
	both := append(append([]byte{}, bundles[0]...), bundles[1]...)
	for want, bundle := range map[string][]byte{
		"ca=" + fingerprints[0]:                            bundles[0],
		"ca=" + fingerprints[0] + "+1":                     both,
		"ca=unreadable(" + shortHash([]byte("x")) + ",1B)": []byte("x"),
	} {
		for _, r := range []Record{&Peer{Name: "aws", ID: 1, CABundle: bundle}, &Cluster{Name: "aws", ID: 1, CABundle: bundle}} {
			if got := strings.Fields(Describe(r)); !slices.Contains(got, want) {
				t.Errorf("%T: %q, want the word %s", r, got, want)
			}
		}
	}
	if got := Describe(&Peer{Name: "aws", ID: 1}); strings.Contains(got, "ca=") {
		t.Errorf("without a bundle: %q", got)
	}
}
