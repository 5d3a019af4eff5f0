//go:build !unix

package flotest

import (
	"errors"
	"syscall"
)

// account says that throwaway servers need a Unix; elsewhere FLO_TEST_POSTGRES_URL serves.
type account struct{ drop bool }

var errNeedsUnix = errors.New("flotest: throwaway servers need a Unix system: set " + EnvURL)

func (account) String() string                    { return "the server's user" }
func serverAccount() account                      { return account{} }
func (account) attr() *syscall.SysProcAttr        { return nil }
func (account) own(string) error                  { return errNeedsUnix }
func (account) canReach(string) bool              { return false }
func (account) tempFolder(string) (string, error) { return "", errNeedsUnix }

const (
	sigSmart     = syscall.Signal(0)
	sigFast      = syscall.Signal(0)
	sigImmediate = syscall.Signal(0)
	sigReload    = syscall.Signal(0)
	sigFreeze    = syscall.Signal(0)
)

func signalPID(int, syscall.Signal) error { return errNeedsUnix }
