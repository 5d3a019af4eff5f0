//go:build !unix

package file

// syncFolder does nothing: Windows has no such call (NTFS journals names), the others have no sync.
func syncFolder(string) error { return nil }
