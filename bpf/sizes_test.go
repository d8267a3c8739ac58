package bpf

import (
	"reflect"
	"strings"
	"testing"
)

// Every size has a name, so that every map can be made larger.
func TestSizesHaveNames(t *testing.T) {
	var s Sizes
	if got, want := len(s.byName()), reflect.TypeFor[Sizes]().NumField(); got != want {
		t.Errorf("%d names for %d sizes", got, want)
	}
	for name := range s.byName() {
		if err := s.Set(name + "=8192"); err != nil {
			t.Error(err)
		}
	}
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		if v.Field(i).Uint() != 8192 {
			t.Errorf("%s was not set", v.Type().Field(i).Name)
		}
	}
}

func TestDefaultSizes(t *testing.T) {
	small, large := DefaultSizes(512<<20), DefaultSizes(24<<30)
	was, now := small.byName(), large.byName()
	for name := range was {
		if *was[name] == 0 || *now[name] < *was[name] {
			t.Errorf("%s: %d rows with little memory, %d with much", name, *was[name], *now[name])
		}
	}
	if large.Services < 100_000 || large.Slots < 2*1_000_000 || large.IPCache < 1_000_000 {
		t.Errorf("24 GiB do not hold 100,000 services of 10 backends in two families and a million addresses: %+v", large)
	}
	// What has all its rows from the start stays a small part of the memory.
	if bytes := uint64(large.Flows)*220 + uint64(large.SocketReverse)*110 + uint64(large.UDPChoice)*140 + uint64(large.Affinity)*140; bytes > 24<<30/200 {
		t.Errorf("maps of programs take %d MiB of 24 GiB", bytes>>20)
	}
}

func TestSizeErrors(t *testing.T) {
	for text, want := range map[string]string{
		"services":           "want NAME=ROWS",
		"service=1":          "the maps are affinity, classes",
		"services=0":         "from 1 to",
		"services=many":      "from 1 to",
		"services=999999999": "from 1 to",
		"events=5000":        "power of two",
	} {
		s := Sizes{Services: 7}
		if err := s.Set(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if s != (Sizes{Services: 7}) {
			t.Errorf("%s: changed to %+v", text, s)
		}
	}
}

func TestSizesOr(t *testing.T) {
	got := Sizes{Flows: 5}.Or(Sizes{Flows: 9, Slots: 3})
	if got != (Sizes{Flows: 5, Slots: 3}) {
		t.Errorf("%+v", got)
	}
}
