package cni

import (
	"io/fs"
	"os"
	"path/filepath"
)

// Aside begins the names of files that are being written: runtimes look for names
// that end in .conf, .conflist or .json, and never see half a file.
const aside = ".tombolo-new-"

// Write replaces path as a whole, and has it on disk when it returns: after a power
// cut there is the old file or the new one.
func Write(path string, data []byte, mode fs.FileMode) error {
	return WriteWith(path, mode, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// WriteWith is Write with what fill puts into the file.
func WriteWith(path string, mode fs.FileMode, fill func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), aside+"*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err = fill(f); err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir has a directory's names on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
