//go:build !unix

package flo_test

import "io/fs"

func keepOwner(fs.FileInfo, string) error { return nil }
