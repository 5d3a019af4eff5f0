// Package folderlock lets one user at a time have a folder, among processes and within one.
package folderlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Name of the file in the folder that carries the lock. It is never removed: two users could then lock
// two files of one name.
const Name = "flo.lock"

// ErrLocked says that somebody else has the folder.
var ErrLocked = errors.New("the folder is locked")

// Lock takes dir, which must be there, and gives how to let it go; a process that dies lets it go too.
// It does not wait: its error is ErrLocked if another one has it, in this process or elsewhere.
func Lock(dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, Name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	if err := lockFile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return func() error { return errors.Join(unlockFile(f), f.Close()) }, nil
}
