package embed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coreos/go-semver/semver"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/version"
)

// lockDir takes the data directory for this process. etcd would wait for its
// own lock for ever.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "LOCK")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd: open lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("embedded etcd: %w: another process holds %s: stop it, or give this one a directory of its own", ErrLocked, path)
		}
		return nil, fmt.Errorf("embedded etcd: lock %s: %w", path, err)
	}
	return f, nil
}

// checkDatabase opens the database before etcd does: etcd would end the process
// over a damaged one, and over one that a newer version has written.
func checkDatabase(dir string) error {
	path := filepath.Join(dir, "etcd", "member", "snap", "db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: 2 * time.Second})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: another process holds %s", ErrLocked, path)
	case err != nil:
		return explain(fmt.Sprintf("%s: %v", path, err), fmt.Errorf("%s: %w", path, err))
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		if err := checkVersion(tx, "cluster", "clusterVersion"); err != nil {
			return err
		}
		return checkVersion(tx, "meta", "storageVersion")
	})
}

// checkVersion compares a version noted in the database with that of this etcd.
func checkVersion(tx *bolt.Tx, bucket, key string) error {
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	text := string(b.Get([]byte(key)))
	if text == "" {
		return nil
	}
	found, err := semver.NewVersion(text)
	if err != nil {
		return explain("damaged", fmt.Errorf("%s is %q: %w", key, text, err))
	}
	ours := semver.Must(semver.NewVersion(version.Version))
	if found.Major > ours.Major || found.Major == ours.Major && found.Minor > ours.Minor {
		return explain("downgrade", fmt.Errorf("%s is %s, this is etcd %s", key, text, version.Version))
	}
	return nil
}
