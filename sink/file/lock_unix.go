//go:build unix && !solaris && !aix

package file

import (
	"errors"
	"os"
	"syscall"
)

// lockFile takes the file for this open descriptor alone, also against another sink in this process.
// The kernel gives the lock free when the process dies (flock(2)).
func lockFile(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EWOULDBLOCK):
			return ErrFolderInUse
		}
		return err
	}
}

func unlockFile(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

// syncFolder makes a file's name durable: syncing the file alone doesn't (fsync(2)).
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
