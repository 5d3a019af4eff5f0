package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pgflo/flo/internal/folderlock"
)

// makeFolder makes dir and those above it, and reports whether it was missing.
func makeFolder(dir string) (made bool, err error) {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.MkdirAll(dir, folderMode)
}

// makeFolders makes the folders of a path below dir, durably.
func makeFolders(dir, below string) error {
	if below == "." {
		return nil
	}
	if err := makeFolders(dir, filepath.Dir(below)); err != nil {
		return err
	}
	// It may be there, though not durably: a sink before this one made it and died. If it isn't a folder
	// making the file fails.
	if err := os.Mkdir(filepath.Join(dir, below), folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(filepath.Join(dir, filepath.Dir(below)))
}

// lockFolder makes sure that no other sink has dir open, and returns how to let it go.
func lockFolder(dir string) (unlock func() error, err error) {
	unlock, err = folderlock.Lock(dir)
	if errors.Is(err, folderlock.ErrLocked) {
		return nil, ErrFolderInUse
	}
	return unlock, err
}
