package bpf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCgroup2At(t *testing.T) {
	found, err := FindCgroup2()
	if err != nil {
		t.Skip(err)
	}
	hybrid := t.TempDir()
	if err := os.Symlink(found, filepath.Join(hybrid, "unified")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{found: found, hybrid: filepath.Join(hybrid, "unified")} {
		if got, err := cgroup2At(path); err != nil || got != want {
			t.Errorf("at %s: got %s, %v; want %s", path, got, err, want)
		}
	}
	for _, path := range []string{t.TempDir(), filepath.Join(hybrid, "missing")} {
		if got, err := cgroup2At(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("at %s: got %q, %v; want an error that names the path", path, got, err)
		}
	}
}
