package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// makeFolder makes dir and those above it, and reports whether it was missing.
func makeFolder(dir string) (made bool, err error) {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.MkdirAll(dir, folderMode)
}

// lockFolder makes sure that no other sink has dir open, and returns how to let it go. The lock's file
// is never removed: two sinks could then lock two files of one name.
func lockFolder(dir string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, LockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error { return errors.Join(unlockFile(f), f.Close()) }, nil
}
