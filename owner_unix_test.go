//go:build unix

package flo_test

import (
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives a copied file the owner of the original: the PostgreSQL server of a root's tests runs as
// another user.
func keepOwner(info fs.FileInfo, path string) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(st.Uid), int(st.Gid))
}
