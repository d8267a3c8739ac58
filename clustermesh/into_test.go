package clustermesh

import (
	"net/netip"
	"testing"
)

// A peer whose record was refused, and then is deleted, has said nothing: the
// address in the key may be another cluster's.
func TestDeleteOfNothingIsNoChange(t *testing.T) {
	v := NewView(Admission{Cluster: "gcp", ID: 2, PodPrefixes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}, ScopeExport)
	own := &Address{Name: AddressName{Node: "n1", Prefix: netip.MustParsePrefix("10.2.1.5/32")}, Identity: MakeIdentity(2, 1), Owner: "uid"}
	if err := v.Apply(Change{Key: KeyOf(ScopeExport, "gcp", own), Record: own}); err != nil {
		t.Fatal(err)
	}
	foreign := &Address{Name: AddressName{Node: "n1", Prefix: netip.MustParsePrefix("10.1.1.5/32")}}
	u := Update{Cluster: "gcp", Scope: ScopeExport, Changes: []Change{
		{Key: KeyOf(ScopeExport, "gcp", foreign)}, {Key: KeyOf(ScopeExport, "gcp", own)}, {Key: KeyOf(ScopeExport, "gcp", own)},
	}}
	_, changes, refused := u.Into(v)
	var got []string
	for c := range changes {
		got = append(got, c.Key.String())
	}
	if len(refused) > 0 || len(got) != 1 || got[0] != KeyOf(ScopeExport, "gcp", own).String() {
		t.Errorf("changes %v, refused %v", got, refused)
	}
}
