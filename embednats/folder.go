package embednats

import (
	"errors"
	"fmt"

	"github.com/pgflo/flo/internal/folderlock"
)

// lockFolder makes sure that no other server has dir open, and returns how to let it go.
func lockFolder(dir string) (unlock func() error, err error) {
	unlock, err = folderlock.Lock(dir)
	switch {
	case errors.Is(err, folderlock.ErrLocked):
		return nil, fmt.Errorf("%w: %s: close that server first, or give this one a folder of its own", ErrFolderInUse, dir)
	case err != nil:
		return nil, fmt.Errorf("embednats: %w", err)
	}
	return unlock, nil
}
