package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// elfFile is the smallest file that debug/elf takes as a program of a machine.
func elfFile(machine uint16, interpreter bool) []byte {
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	segments := uint16(0)
	if interpreter {
		segments = 1
	}
	for _, v := range []any{uint16(2), machine, uint32(1), uint64(0), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), segments, uint16(0), uint16(0), uint16(0)} {
		binary.Write(&b, binary.LittleEndian, v)
	}
	if interpreter {
		for _, v := range []any{uint32(3), uint32(4), uint64(0), uint64(0), uint64(0), uint64(0), uint64(0), uint64(1)} {
			binary.Write(&b, binary.LittleEndian, v)
		}
	}
	return b.Bytes()
}

func binDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range programs {
		put(t, dir, name, append(elfFile(62, false), name...))
	}
	return dir
}

func put(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// unpack reads an archive into its files, in order.
func unpack(t *testing.T, in io.Reader) (names []string, files map[string][]byte, headers map[string]*tar.Header) {
	t.Helper()
	files, headers = make(map[string][]byte), make(map[string]*tar.Header)
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, files, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		names, files[h.Name], headers[h.Name] = append(names, h.Name), data, h
	}
}

func made(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image.tar")
	var said bytes.Buffer
	if err := run([]string{"-bin", dir, "-version", "v1.2.3", "-revision", "abc", "-o", out}, &said); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), "tombolo.io/tombolo:v1.2.3 for linux/amd64") {
		t.Errorf("it says %q", said.String())
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, files, _ := unpack(t, f)
	return files
}

// blob is what a descriptor points to, verified.
func blob(t *testing.T, files map[string][]byte, d descriptor) []byte {
	t.Helper()
	data, ok := files[blobPath(d.Digest)]
	if !ok || digest(data) != d.Digest || len(data) != d.Size {
		t.Fatalf("%+v points to %d bytes of digest %s", d, len(data), digest(data))
	}
	return data
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
}

// The archive is an OCI layout and a Docker archive of the same image, whose
// layers hold the programs.
func TestArchive(t *testing.T) {
	dir := binDir(t)
	files := made(t, dir)
	if got := string(files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout is %s", got)
	}
	var index struct{ Manifests []descriptor }
	decode(t, files["index.json"], &index)
	if len(index.Manifests) != 1 {
		t.Fatalf("index.json has %d images", len(index.Manifests))
	}
	m := index.Manifests[0]
	if m.Annotations["io.containerd.image.name"] != "tombolo.io/tombolo:v1.2.3" || m.Annotations["org.opencontainers.image.ref.name"] != "v1.2.3" || m.Platform["architecture"] != "amd64" {
		t.Errorf("the image is called %v, for %v", m.Annotations, m.Platform)
	}
	var manifest struct {
		Config      descriptor
		Layers      []descriptor
		Annotations map[string]string
	}
	decode(t, blob(t, files, m), &manifest)
	if manifest.Annotations["org.opencontainers.image.revision"] != "abc" {
		t.Errorf("annotations %v", manifest.Annotations)
	}
	var config struct {
		Architecture, OS string
		Config           struct{ Env []string }
		RootFS           struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	decode(t, blob(t, files, manifest.Config), &config)
	if config.Architecture != "amd64" || config.OS != "linux" || !slices.Equal(config.Config.Env, []string{"PATH=/usr/bin"}) {
		t.Errorf("config %+v", config)
	}
	var docker []struct {
		Config           string
		RepoTags, Layers []string
	}
	decode(t, files["manifest.json"], &docker)
	if len(docker) != 1 || docker[0].Config != blobPath(manifest.Config.Digest) || len(docker[0].Layers) != len(manifest.Layers) {
		t.Fatalf("manifest.json is %+v", docker)
	}
	inside := make(map[string]bool)
	for i, l := range manifest.Layers {
		if docker[0].Layers[i] != blobPath(l.Digest) {
			t.Errorf("layer %d is %s for docker, %s for OCI", i, docker[0].Layers[i], l.Digest)
		}
		unzip, err := gzip.NewReader(bytes.NewReader(blob(t, files, l)))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(unzip)
		if err != nil {
			t.Fatal(err)
		}
		if digest(plain) != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d unpacks to %s, the config says %s", i, digest(plain), config.RootFS.DiffIDs[i])
		}
		_, content, headers := unpack(t, bytes.NewReader(plain))
		for name, h := range headers {
			inside[name] = true
			if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(time.Unix(0, 0)) {
				t.Errorf("%s is of %d:%d, %s", name, h.Uid, h.Gid, h.ModTime)
			}
			if base, ok := strings.CutPrefix(name, "usr/bin/"); ok && base != "" {
				want, err := os.ReadFile(filepath.Join(dir, base))
				if err != nil || !bytes.Equal(content[name], want) || h.Mode != 0o755 {
					t.Errorf("%s is not the program: %d bytes, mode %o, %v", name, len(content[name]), h.Mode, err)
				}
			}
			if name == "tmp/" && (h.Typeflag != tar.TypeDir || h.Mode != 0o1777) {
				t.Errorf("/tmp is %c of mode %o", h.Typeflag, h.Mode)
			}
		}
	}
	for _, want := range []string{"usr/bin/tombolo", "usr/bin/tombolo-agent", "usr/bin/tombolo-apiserver", "usr/bin/tombolo-cni", "etc/passwd", "etc/nsswitch.conf", "tmp/"} {
		if !inside[want] {
			t.Errorf("%s is in no layer", want)
		}
	}
}

// Equal programs make equal bytes, wherever and whenever; another program changes
// its own layer alone.
func TestSameBytes(t *testing.T) {
	one, other := binDir(t), binDir(t)
	a, b := made(t, one), made(t, other)
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			t.Errorf("%s differs", name)
		}
	}
	put(t, other, "tombolo-cni", append(elfFile(62, false), "changed"...))
	c := made(t, other)
	shared := 0
	for name := range a {
		if strings.HasPrefix(name, "blobs/") && bytes.Equal(a[name], c[name]) {
			shared++
		}
	}
	if shared != len(programs) { // base and the three other programs; not manifest, config and its layer
		t.Errorf("%d blobs stay when one program changes, want %d", shared, len(programs))
	}
}

func TestDate(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	var m struct{ Manifests []descriptor }
	files := made(t, binDir(t))
	decode(t, files["index.json"], &m)
	var manifest struct{ Config descriptor }
	decode(t, blob(t, files, m.Manifests[0]), &manifest)
	if config := string(blob(t, files, manifest.Config)); !strings.Contains(config, "2023-11-14T22:13:20Z") {
		t.Errorf("the date is not in %s", config)
	}
}

// What would not start is refused, and an archive that is there stays.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(dir string)
		env    string
		want   string
	}{
		{"missing", func(dir string) { os.Remove(filepath.Join(dir, "tombolo")) }, "", "run 'make build' first"},
		{"no program", func(dir string) { put(t, dir, "tombolo", []byte("#!/bin/sh\n")) }, "", "no Linux program"},
		{"dynamic", func(dir string) { put(t, dir, "tombolo", elfFile(62, true)) }, "", "CGO_ENABLED=0"},
		{"two machines", func(dir string) { put(t, dir, "tombolo-agent", elfFile(183, false)) }, "", "build all of them for one"},
		{"another machine", func(dir string) { put(t, dir, "tombolo-cni", elfFile(22, false)) }, "", "x86-64 and AArch64"},
		{"date", func(string) {}, "yesterday", `"yesterday" is no number`},
	} {
		dir := binDir(t)
		c.change(dir)
		t.Setenv("SOURCE_DATE_EPOCH", c.env)
		out := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(out, []byte("before"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run([]string{"-bin", dir, "-o", out}, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if now, _ := os.ReadFile(out); string(now) != "before" {
			t.Errorf("%s: the archive of before is gone", c.name)
		}
		if left, _ := os.ReadDir(filepath.Dir(out)); len(left) != 1 {
			t.Errorf("%s: %v is left", c.name, left)
		}
	}
}

func TestTag(t *testing.T) {
	for in, want := range map[string]string{"v1.2.3": "v1.2.3", "c264767-dirty": "c264767-dirty", "a+b/c": "a-b-c", "-x": "x", "": "dev", "..": "dev", strings.Repeat("a", 200): strings.Repeat("a", 128)} {
		if got := tag(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
