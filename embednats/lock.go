package embednats

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// lockName is the file in the store's folder that carries the lock. It stays there when
// the server is gone: removing it would let two servers lock two files of one name.
const lockName = "flo.lock"

var errLocked = errors.New("locked")

// lockFolder makes sure that no other server has dir open, and returns how to let it go.
func lockFolder(dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("embednats: lock file: %w", err)
	}
	if err := lockFile(f); err != nil {
		f.Close()
		if errors.Is(err, errLocked) {
			return nil, fmt.Errorf("%w: %s: close that server first, or give this one a folder of its own", ErrFolderInUse, dir)
		}
		return nil, fmt.Errorf("embednats: lock %s: %w", path, err)
	}
	return func() error { return errors.Join(unlockFile(f), f.Close()) }, nil
}
