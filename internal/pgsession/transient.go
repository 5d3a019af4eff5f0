package pgsession

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLState gives the SQLSTATE of the PostgreSQL error that err wraps, "" if it wraps none.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func SQLState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// Transient reports whether err may pass by itself, so that the same thing is worth trying again on a
// new connection: the connection was lost or could not be made, the server is starting, stopping or
// full, or the transaction met another one. It goes by type and SQLSTATE, never by text.
//
// Whether a commit whose answer was lost took place is another question, which the caller has to answer.
// A context that ended is the caller's own doing: not transient.
func Transient(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if code := SQLState(err); code != "" {
		return transientState(code)
	}
	if errors.Is(err, pgconn.ErrConnClosed) || pgconn.Timeout(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return true
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return true
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return !errors.Is(err, context.DeadlineExceeded)
	}
	// A connection broken under pgx without a net.OpError around it.
	var errno syscall.Errno
	return errors.As(err, &errno) && (errno == syscall.ECONNRESET || errno == syscall.EPIPE ||
		errno == syscall.ECONNREFUSED || errno == syscall.ETIMEDOUT || errno == syscall.ECONNABORTED)
}

// transientState judges an SQLSTATE.
func transientState(code string) bool {
	switch code {
	case "08P01": // protocol_violation: the same bytes would be refused again
		return false
	case "57P01", "57P02", "57P03", "57P05", // shutdown, crash, cannot_connect_now, idle session ended
		"25P03", "25P04", // idle-in-transaction and transaction timeout of somebody's making
		"53300",                            // too_many_connections
		"55006",                            // object_in_use: a slot whose walsender lives on for a while
		"55P03",                            // lock_not_available
		"57014",                            // query_canceled that our own context did not ask for: a timeout, an operator
		"40001", "40P01", "40003", "40000", // serialization, deadlock, completion unknown, rollback
		"58030": // io_error
		return true
	}
	return len(code) == 5 && (code[:2] == "08" || code[:2] == "53")
}
