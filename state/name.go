package state

import (
	"errors"
	"fmt"
	"strings"
)

// ErrName says that a worker's name can't be used as a key.
var ErrName = errors.New("state: invalid worker name")

// CheckName checks a worker's name: 1 to 64 of the characters A-Z a-z 0-9 _ and -, else ErrName.
func CheckName(name string) error {
	ok := len(name) >= 1 && len(name) <= 64 && strings.IndexFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '-')
	}) < 0
	if !ok {
		return fmt.Errorf("%w %q: want 1 to 64 of the characters A-Z a-z 0-9 _ -", ErrName, name)
	}
	return nil
}
