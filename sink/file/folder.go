package file

import (
	"errors"
	"io/fs"
	"os"

	"github.com/pgflo/flo/internal/folderlock"
)

// makeFolder makes dir and those above it, and reports whether it was missing.
func makeFolder(dir string) (made bool, err error) {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.MkdirAll(dir, folderMode)
}

// lockFolder makes sure that no other sink has dir open, and returns how to let it go.
func lockFolder(dir string) (unlock func() error, err error) {
	unlock, err = folderlock.Lock(dir)
	if errors.Is(err, folderlock.ErrLocked) {
		return nil, ErrFolderInUse
	}
	return unlock, err
}
