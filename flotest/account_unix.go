//go:build unix

package flotest

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the system user that the server runs as. PostgreSQL refuses to run as
// root, so a root test process lends it another one; the zero account is the process's own.
type account struct {
	drop     bool
	uid, gid int
}

// nobodyID is the kernel's overflow user, good for a machine without a user database.
const nobodyID = 65534

func serverAccount() account {
	if os.Geteuid() != 0 {
		return account{}
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return account{true, uid, gid}
		}
	}
	return account{true, nobodyID, nobodyID}
}

// String names the account for an error message.
func (a account) String() string {
	if !a.drop {
		return "the server's user"
	}
	return fmt.Sprintf("the server's user (uid %d; PostgreSQL refuses to run as root)", a.uid)
}

// attr puts a child into a process group of its own, so that an interrupt typed at the
// terminal ends the tests and leaves the children to the guard.
func (a account) attr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a.drop {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return attr
}

// own gives one file or folder to the account.
func (a account) own(path string) error {
	if !a.drop {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

// canReach reports whether the account may pass through every folder down to dir.
func (a account) canReach(dir string) bool {
	if !a.drop {
		return true
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	for {
		fi, err := os.Stat(dir)
		if err != nil || !fi.IsDir() || !a.mayPass(fi) {
			return false
		}
		up := filepath.Dir(dir)
		if up == dir {
			return true
		}
		dir = up
	}
}

func (a account) mayPass(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	switch mode := fi.Mode().Perm(); {
	case int(st.Uid) == a.uid:
		return mode&0o100 != 0
	case int(st.Gid) == a.gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}

// tempFolder makes a private folder for the account, at the first place that the account
// can reach (a root process often has a TMPDIR below a folder closed to others).
func (a account) tempFolder(pattern string) (string, error) {
	for _, base := range []string{os.TempDir(), "/tmp", "/var/tmp", "/dev/shm"} {
		if !a.canReach(base) {
			continue
		}
		dir, err := os.MkdirTemp(base, pattern)
		if err != nil {
			continue
		}
		return dir, a.own(dir)
	}
	return "", fmt.Errorf("flotest: no temporary folder that the %s can reach: set TMPDIR to one", a)
}

const (
	sigSmart     = syscall.SIGTERM
	sigFast      = syscall.SIGINT
	sigImmediate = syscall.SIGQUIT
	sigReload    = syscall.SIGHUP
	sigFreeze    = syscall.SIGSTOP
)

func signalPID(pid int, sig syscall.Signal) error { return syscall.Kill(pid, sig) }
