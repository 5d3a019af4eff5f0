//go:build !linux

package source

import "net"

// wakeAt is for Linux.
func wakeAt(net.Conn, int) {}
