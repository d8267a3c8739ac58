package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// file is one file of the image.
type file struct {
	name string // absolute
	mode int64
	data []byte
	link string // of a symbolic link; data is empty then
}

// spec is all that decides about an image: equal specs make equal bytes.
type spec struct {
	reference string // tombolo.io/tombolo:v1
	arch      string
	created   time.Time
	labels    map[string]string
	layers    [][]file
}

// descriptor is the OCI image specification's.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

type object = map[string]any

// archive collects blobs by their digest, in the order in which they came.
type archive struct {
	names []string
	blobs map[string][]byte
}

// write makes a tar that is an OCI layout and a Docker archive at once: ctr,
// podman, skopeo and docker all take it.
func write(out io.Writer, s spec) error {
	a := archive{blobs: map[string][]byte{}}
	var layers []descriptor
	var diffs []string
	for _, files := range s.layers {
		plain, err := layer(files, s.created)
		if err != nil {
			return err
		}
		packed, err := pack(plain)
		if err != nil {
			return err
		}
		diffs = append(diffs, digest(plain))
		layers = append(layers, a.put(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
	}
	created := s.created.UTC().Format(time.RFC3339)
	config := a.json("application/vnd.oci.image.config.v1+json", object{
		"created": created, "architecture": s.arch, "os": "linux",
		"config":  object{"Env": []string{"PATH=/usr/bin"}, "WorkingDir": "/", "Labels": s.labels},
		"rootfs":  object{"type": "layers", "diff_ids": diffs},
		"history": []object{{"created": created, "created_by": "deploy/image"}},
	})
	manifest := a.json("application/vnd.oci.image.manifest.v1+json", object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": layers, "annotations": s.labels,
	})
	manifest.Platform = map[string]string{"architecture": s.arch, "os": "linux"}
	_, tag, _ := cutTag(s.reference)
	manifest.Annotations = map[string]string{"io.containerd.image.name": s.reference, "org.opencontainers.image.ref.name": tag}
	return a.tar(out, s, manifest, config, layers)
}

func (a *archive) tar(out io.Writer, s spec, manifest, config descriptor, layers []descriptor) error {
	t := tar.NewWriter(out)
	add := func(name string, data []byte) error {
		err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: s.created})
		if err == nil {
			_, err = t.Write(data)
		}
		return err
	}
	var paths []string
	for _, l := range layers {
		paths = append(paths, blobPath(l.Digest))
	}
	index := object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []descriptor{manifest}}
	docker := []object{{"Config": blobPath(config.Digest), "RepoTags": []string{s.reference}, "Layers": paths}}
	for _, f := range []struct {
		name string
		data any
	}{{"oci-layout", object{"imageLayoutVersion": "1.0.0"}}, {"index.json", index}, {"manifest.json", docker}} {
		text, err := json.Marshal(f.data)
		if err == nil {
			err = add(f.name, text)
		}
		if err != nil {
			return err
		}
	}
	for _, name := range a.names {
		if err := add(blobPath(name), a.blobs[name]); err != nil {
			return err
		}
	}
	return t.Close()
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

func (a *archive) put(data []byte, media string) descriptor {
	d := digest(data)
	if _, twice := a.blobs[d]; !twice {
		a.names = append(a.names, d)
		a.blobs[d] = data
	}
	return descriptor{MediaType: media, Digest: d, Size: len(data)}
}

func (a *archive) json(media string, v object) descriptor {
	text, err := json.Marshal(v) // maps are written in the order of their keys
	if err != nil {
		panic(err) // strings and numbers alone
	}
	return a.put(text, media)
}

// layer is a tar of the files and the folders above them, all owned by root and
// of one time.
func layer(files []file, at time.Time) ([]byte, error) {
	var buf bytes.Buffer
	t := tar.NewWriter(&buf)
	seen := map[string]bool{"/": true}
	var folders func(dir string) error
	folders = func(dir string) error {
		if seen[dir] {
			return nil
		}
		if err := folders(path.Dir(dir)); err != nil {
			return err
		}
		seen[dir] = true
		return t.WriteHeader(&tar.Header{Name: dir[1:] + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: at})
	}
	for _, f := range files {
		if err := folders(path.Dir(path.Clean(f.name))); err != nil {
			return nil, err
		}
		h := &tar.Header{Name: f.name[1:], Mode: f.mode, Size: int64(len(f.data)), ModTime: at, Typeflag: tar.TypeReg}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
			seen[path.Clean(f.name)] = true
		}
		if err := t.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := t.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := t.Close()
	return buf.Bytes(), err
}

// pack is gzip without a name or a time in its header.
func pack(data []byte) ([]byte, error) {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.DefaultCompression)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	return buf.Bytes(), err
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
