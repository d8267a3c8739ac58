package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Unload detaches all programs and removes all pins of ours in the directory, of
// any version, our clsact filters in the calling thread's network namespace, and
// the directory itself unless something of somebody else's is in it. It refuses while an agent runs. Doing it twice is no error.
func Unload(pinDir string) error {
	entries, err := os.ReadDir(pinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lock, err := lockDir(pinDir)
	if err != nil {
		return err
	}
	defer lock.Close()

	errs := []error{removeClsact("")}
	if checkBPFFS(pinDir) != nil {
		return errors.Join(errs...) // its bpffs was unmounted, and so the pins are gone
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "tmb_") && !e.IsDir() {
			errs = append(errs, removeLink(filepath.Join(pinDir, e.Name())))
		}
	}
	if err := os.Remove(pinDir); !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) { // busy: it is the mount itself
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeLink removes a pin; a link is detached too, even if others hold it.
func removeLink(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		err = l.Detach()
		l.Close()
		if err != nil && !errors.Is(err, link.ErrNotSupported) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("detach %s: %w", pin, err)
		}
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
