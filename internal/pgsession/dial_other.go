//go:build !linux

package pgsession

import (
	"net"
	"time"
)

// limitUnacknowledged is left to the operating system's own retransmission limit.
func limitUnacknowledged(*net.TCPConn, time.Duration) {}
