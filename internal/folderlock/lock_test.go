package folderlock

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func TestOneAtATime(t *testing.T) {
	switch runtime.GOOS {
	case "solaris", "aix", "js", "wasip1", "plan9":
		t.Skip("no lock on this platform")
	}
	dir := t.TempDir()
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("a second lock: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if unlock, err = Lock(dir); err != nil {
		t.Fatal(err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestMissingFolderIsNamed(t *testing.T) {
	_, err := Lock(filepath.Join(t.TempDir(), "missing"))
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrLocked) {
		t.Errorf("%v", err)
	}
}
