// Command image writes the container image: the four static programs and next to
// nothing else, as an archive that containerd, podman and docker load. It needs
// no container tool and no network, and equal programs make equal bytes.
//
//	go run ./deploy/image -bin bin -version v1.0.0 -o bin/tombolo-image.tar
package main

import (
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// programs are what the image has in /usr/bin, each in a layer of its own: one
// that did not change is not fetched again.
var programs = []string{"tombolo-cni", "tombolo-agent", "tombolo-apiserver", "tombolo"}

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string, stderr io.Writer) error {
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.SetOutput(stderr)
	bin := f.String("bin", "bin", "folder with the four programs")
	version := f.String("version", "dev", "version, and the tag of the image")
	revision := f.String("revision", "", "commit it was built from")
	repository := f.String("repository", "tombolo.io/tombolo", "name of the image without its tag")
	out := f.String("o", "bin/tombolo-image.tar", "archive to write")
	if err := f.Parse(args); err != nil {
		return err
	}
	created, err := sourceDate(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	s, err := compose(*bin, *repository+":"+tag(*version), *version, *revision, created)
	if err != nil {
		return err
	}
	if err := writeFile(*out, s); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s: %s for linux/%s\n", *out, s.reference, s.arch)
	return nil
}

// compose reads the programs and says what the image is made of.
func compose(bin, reference, version, revision string, created time.Time) (spec, error) {
	s := spec{reference: reference, created: created, layers: [][]file{base()}, labels: map[string]string{
		"org.opencontainers.image.title":       "tombolo",
		"org.opencontainers.image.description": "Joins Kubernetes clusters into one mesh",
		"org.opencontainers.image.source":      "https://github.com/tombolo-mesh/tombolo",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     version,
	}}
	if revision != "" {
		s.labels["org.opencontainers.image.revision"] = revision
	}
	for _, name := range programs {
		exe, arch, err := program(filepath.Join(bin, name), "/usr/bin/"+name)
		if err != nil {
			return s, err
		}
		if s.arch != "" && s.arch != arch {
			return s, fmt.Errorf("%s is for %s, others are for %s: build all of them for one", name, arch, s.arch)
		}
		s.arch = arch
		s.layers = append(s.layers, []file{exe})
	}
	return s, nil
}

// base is what programs without a libc still look for: names of the users, and
// that hosts are asked for before DNS. There are no CA certificates: every
// connection is verified against a bundle that somebody gave on purpose.
func base() []file {
	return []file{
		{name: "/etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n")},
		{name: "/etc/group", mode: 0o644, data: []byte("root:x:0:\nnobody:x:65534:\n")},
		{name: "/etc/nsswitch.conf", mode: 0o644, data: []byte("hosts: files dns\n")},
		{name: "/tmp/", mode: 0o1777},
	}
}

// program refuses what would not start in an image without a loader.
func program(path, name string) (file, string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return file{}, "", fmt.Errorf("%s is missing: run 'make build' first", path)
	}
	if err != nil {
		return file{}, "", err
	}
	e, err := elf.Open(path)
	if err != nil {
		return file{}, "", fmt.Errorf("%s is no Linux program: %w", path, err)
	}
	defer e.Close()
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return file{}, "", fmt.Errorf("%s is linked dynamically and would not start in the image: build it with CGO_ENABLED=0", path)
		}
	}
	arch, ok := map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}[e.Machine]
	if !ok {
		return file{}, "", fmt.Errorf("%s is for %v: there are images for x86-64 and AArch64", path, e.Machine)
	}
	return file{name: name, mode: 0o755, data: data}, arch, nil
}

// sourceDate is SOURCE_DATE_EPOCH; without it everything is of 1970, so that the
// clock never makes two builds differ.
func sourceDate(text string) (time.Time, error) {
	if text == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q is no number of seconds", text)
	}
	return time.Unix(n, 0).UTC(), nil
}

// tag is a version in the letters that tags may have.
func tag(version string) string {
	t := strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '.', r == '-', r == '_':
			return r
		}
		return '-'
	}, version)
	t = strings.TrimLeft(t, ".-")
	if t == "" {
		return "dev"
	}
	return t[:min(len(t), 128)]
}

func cutTag(reference string) (repository, tag string, ok bool) {
	i := strings.LastIndex(reference, ":")
	if i < 0 || strings.Contains(reference[i:], "/") {
		return reference, "", false
	}
	return reference[:i], reference[i+1:], true
}

// writeFile replaces the archive in one step.
func writeFile(path string, s spec) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = errors.Join(write(tmp, s), tmp.Chmod(0o644), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
