//go:build unix

package file

import (
	"errors"
	"os"
)

// syncFolder makes a file's name durable: syncing the file alone doesn't (fsync(2)).
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
