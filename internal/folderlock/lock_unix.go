//go:build unix && !solaris && !aix

package folderlock

import (
	"errors"
	"os"
	"syscall"
)

// lockFile takes the file for this open descriptor alone. flock(2) binds the lock to
// the open file, so a second user in the same process is refused too, and the kernel
// frees it when the process dies.
func lockFile(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EWOULDBLOCK):
			return ErrLocked
		}
		return err
	}
}

// unlockFile frees the lock itself: only closing would leave it to a child process that
// was forked at this moment and still holds a copy of the descriptor.
func unlockFile(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }
