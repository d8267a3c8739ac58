package clustermesh

import (
	"reflect"
	"testing"
)

func TestHints(t *testing.T) {
	both := MakeHints([]string{"b", "a", "b"}, []uint16{10, 9, 10})
	if got := both.Zones(); !reflect.DeepEqual(got, []string{"a", "b"}) {
		t.Errorf("zones %v", got)
	}
	if got := both.Nodes(); !reflect.DeepEqual(got, []uint16{9, 10}) {
		t.Errorf("nodes %v", got)
	}
	if both != MakeHints([]string{"a", "b"}, []uint16{9, 10}) {
		t.Error("the order of hints counts")
	}
	tests := []struct {
		h                                Hints
		none, zones, nodes, zoneA, node9 bool
	}{
		{Hints{}, true, false, false, false, false},
		{MakeHints(nil, nil), true, false, false, false, false},
		{both, false, true, true, true, true},
		{MakeHints([]string{"a"}, nil), false, true, false, true, false},
		{MakeHints([]string{"aa"}, nil), false, true, false, false, false},
		{MakeHints(nil, []uint16{9}), false, false, true, false, true},
		{MakeHints(nil, []uint16{99}), false, false, true, false, false},
	}
	for _, test := range tests {
		h := test.h
		if h.IsZero() != test.none || h.HasZones() != test.zones || h.HasNodes() != test.nodes || h.ForZone("a") != test.zoneA || h.ForNode(9) != test.node9 {
			t.Errorf("%q: none %v, zones %v, nodes %v, zone a %v, node 9 %v", h.text(), h.IsZero(), h.HasZones(), h.HasNodes(), h.ForZone("a"), h.ForNode(9))
		}
		if h.ForZone("") || h.ForNode(0) {
			t.Errorf("%q is for a client whose place is not known", h.text())
		}
	}
}
