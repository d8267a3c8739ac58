package clustermesh

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseKey(t *testing.T) {
	for _, s := range []string{
		"/tombolo/v1/export/aws/cluster",
		"/tombolo/v1/export/aws/node/ip-10-0-0-1.internal",
		"/tombolo/v1/local/aws/service/shop/checkout",
		"/tombolo/v1/mirror/a/endpointslice/shop/checkout/x-1",
		"/tombolo/v1/export/aws/identity/1048577",
		"/tombolo/v1/export/aws/address/n1/10.1.1.5",
		"/tombolo/v1/export/aws/address/n1/10.1.0.0+16",
		"/tombolo/v1/export/aws/address/n1/fd00::5",
		"/tombolo/v1/export/aws/address/n1/::+0",
		"/tombolo/v1/local/aws/peer/gcp",
		"/tombolo/v1/local/aws/policy/shop/deny",
		"/tombolo/v1/local/aws/workload/shop/client",
	} {
		k, err := ParseKey(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		} else if k.String() != s {
			t.Errorf("%s came back as %s", s, k)
		}
	}
}

func TestParseKeyRefuses(t *testing.T) {
	const p = "/tombolo/v1/export/aws/"
	for key, want := range map[string]string{
		"":                                     "does not begin with",
		"/tombolo/v2/export/aws/cluster":       "does not begin with",
		"/tombolo/v1/export":                   "no cluster",
		"/tombolo/v1/export/aws":               "no kind",
		"/tombolo/v1/secret/aws/cluster":       "unknown scope",
		"/tombolo/v1/export//cluster":          "cluster name is empty",
		"/tombolo/v1/export/Aws/cluster":       "not a DNS label",
		"/tombolo/v1/export/-aws/cluster":      "not a DNS label",
		"/tombolo/v1/export/aws.eu/cluster":    "not a DNS label",
		p + "cluster/x":                        "has no name",
		p + "cluster/":                         "ends in a slash",
		p + "thing/x":                          "unknown kind",
		p + "node":                             "is empty",
		p + "node/a/b":                         "2 parts",
		p + "node/..":                          "is no name",
		p + "node/a b":                         "character outside",
		p + "node/a\x1b[31m":                   `\x1b[31m`,
		p + "service/ns":                       "1 parts",
		p + "service/ns//x":                    "is empty",
		p + "service//x":                       "is empty",
		p + "endpointslice/a/b":                "2 parts",
		p + "identity/007":                     "not a decimal",
		p + "identity/+7":                      "not a decimal",
		p + "identity/4294967296":              "not a decimal",
		p + "identity/":                        "ends in a slash",
		p + "identity":                         "not a decimal",
		p + "address/n1":                       "should be <node>/<prefix>",
		p + "address/n1/10.1.1.5+32":           "prefix length",
		p + "address/n1/10.1.1.5+24":           "bits set beyond",
		p + "address/n1/10.1.1.0/24":           "not an address",
		p + "address/n1/010.1.1.0":             "not an address",
		p + "address/n1/::ffff:10.1.1.1":       "not an address",
		p + "address/n1/FD00::5":               "should be spelt fd00::5",
		p + "address/n1/fe80::1%eth0":          "not an address",
		p + "address/n1/10.0.0.0+08":           "should be spelt",
		p + "address//10.1.1.5":                "is empty",
		p + "peer/Not-a-Name":                  "not a DNS label",
		p + "node/" + strings.Repeat("a", 254): "254 bytes",
		"/tombolo/v1/export/" + strings.Repeat("a", 33) + "/cluster": "at most 32",
		p + "service/" + strings.Repeat("a/", 600):                   "at most 1024",
	} {
		_, err := ParseKey(key)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", key, err, want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("%q: control characters in the error", key)
		}
	}
}

func TestKeyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord.Draw(t, "record")
		k := KeyOf(rapid.SampledFrom([]Scope{ScopeExport, ScopeLocal, ScopeMirror}).Draw(t, "scope"), genCluster.Draw(t, "cluster"), r)
		back, err := ParseKey(k.String())
		if err != nil || back != k {
			t.Fatalf("%v came back as %v: %v", k, back, err)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add("/tombolo/v1/export/aws/address/n1/10.1.0.0+16")
	f.Add("/tombolo/v1/export/aws/identity/1048577")
	f.Add("/tombolo/v1/local/aws/endpointslice/a/b/c")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if err == nil && k.String() != s {
			t.Fatalf("%q came back as %q", s, k)
		}
	})
}
