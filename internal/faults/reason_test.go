//go:build unix

package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// A failure is kept in the ledger by its first lines.
const (
	reasonLines = 3
	reasonBytes = 400
)

// firstFailure is a test that remembers what it failed with first.
type firstFailure struct {
	testing.TB
	mu   sync.Mutex
	text string
}

func (f *firstFailure) note(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.text == "" {
		f.text = text
	}
}

func (f *firstFailure) Error(args ...any) {
	f.Helper()
	f.note(fmt.Sprintln(args...))
	f.TB.Error(args...)
}

func (f *firstFailure) Errorf(format string, args ...any) {
	f.Helper()
	f.note(fmt.Sprintf(format, args...))
	f.TB.Errorf(format, args...)
}

func (f *firstFailure) Fatal(args ...any) {
	f.Helper()
	f.note(fmt.Sprintln(args...))
	f.TB.Fatal(args...)
}

func (f *firstFailure) Fatalf(format string, args ...any) {
	f.Helper()
	f.note(fmt.Sprintf(format, args...))
	f.TB.Fatalf(format, args...)
}

// reason gives the failure's first lines in one, and why the run's context had ended by then, if the failure doesn't say.
func (f *firstFailure) reason(cause error) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.text == "" {
		return ""
	}
	var first []string
	for line := range strings.Lines(f.text) {
		if line = strings.TrimSpace(line); line != "" && len(first) < reasonLines {
			first = append(first, line)
		}
	}
	text := strings.Join(first, " / ")
	if len(text) > reasonBytes {
		text = strings.ToValidUTF8(text[:reasonBytes], "") + " ..."
	}
	if cause != nil && !errors.Is(cause, context.Canceled) && !strings.Contains(text, cause.Error()) {
		text += "; the run had ended: " + cause.Error()
	}
	return text
}

func TestAFailedRunSaysWhy(t *testing.T) {
	f := &firstFailure{TB: t}
	if got := f.reason(errors.New("cut off")); got != "" {
		t.Errorf("a run that did not fail has the reason %q", got)
	}
	f.note("it differs:\n\n  row 1\n  row 2\n  row 3\n")
	f.note("what comes of it")
	if got, want := f.reason(errors.New("cut off")), "it differs: / row 1 / row 2; the run had ended: cut off"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
