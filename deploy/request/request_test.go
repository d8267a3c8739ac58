package request

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What is asked arrives as it was asked.
func TestRoundTrip(t *testing.T) {
	want := Request{Verb: "install", Version: "v1.2.3", Kubeconfigs: []string{"/a b", "/c"}, Context: `x"y`, Namespace: "n",
		Set: []string{"a=b,c={d}"}, Files: []string{"v.yaml"}, Wait: true, Timeout: time.Minute, DryRun: true, KeepState: true, Force: true, Pre: true, JSON: true}
	for i, v := 0, reflect.ValueOf(want); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("this test leaves %s out", v.Type().Field(i).Name)
		}
	}
	arg, err := want.Argument()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(arg, "v1.2.3"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
	for in, want := range map[string]string{"": "run 'tombolo install --help'", "--help": "run 'tombolo install --help'", `{"Verb":"check","Version":"v2"}`: "take both from one release"} {
		if _, err := Parse(in, "v1.2.3"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

// The one beside tombolo goes before one in the PATH, and what cannot be run is none.
func TestFind(t *testing.T) {
	beside, inPath := t.TempDir(), t.TempDir()
	t.Setenv("PATH", inPath)
	self := filepath.Join(beside, "tombolo")
	if _, err := Find(self); err == nil || !strings.Contains(err.Error(), beside) {
		t.Errorf("nowhere: %v", err)
	}
	put := func(dir string, mode os.FileMode) string {
		path := filepath.Join(dir, Program)
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	second := put(inPath, 0o755)
	first := put(beside, 0o644)
	for _, from := range []string{"", self} {
		if got, err := Find(from); err != nil || got != second {
			t.Errorf("from %q: %s %v, want %s", from, got, err, second)
		}
	}
	if err := os.Chmod(first, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Find(self); err != nil || got != first {
		t.Errorf("%s %v, want %s", got, err, first)
	}
}
