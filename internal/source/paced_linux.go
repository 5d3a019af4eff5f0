package source

import (
	"net"
	"syscall"
)

// wakeAt makes the kernel tell of arriving bytes only once that many wait in the socket: otherwise the runtime's
// poller is woken for each packet, by the process that sends it, also while nobody wants to read. A read takes what
// there is in any case. Linux: tcp_data_ready in net/ipv4/tcp_input.c; socket(7), SO_RCVLOWAT. It is a matter
// of speed only, so errors are passed over: a socket of another kind may not know it.
func wakeAt(c net.Conn, bytes int) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, bytes)
	})
}
