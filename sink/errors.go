package sink

import (
	"errors"
	"fmt"
)

// ErrUnsupported says that a sink does not know an operation (a schema change, say).
var ErrUnsupported = errors.New("sink: operation not supported")

// ErrLeaseLost says that a later epoch of the same worker has taken over: this one must not write.
var ErrLeaseLost = errors.New("sink: another worker of this name has taken over; stop this one, or give it another name")

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks an error that trying again cannot mend. Depending on its error policy the worker then stops, or
// makes the change a dead letter, instead of retrying. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent reports whether err is marked so anywhere in its chain.
func IsPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}

// RejectError says which change of a batch could not be taken. It is permanent.
type RejectError struct {
	Index int // into Batch.Changes
	Err   error
}

// Reject says that Changes[i] can never be taken, because of err. Without it the worker finds the change by giving
// the batch again in ever smaller pieces.
func Reject(i int, err error) error { return &permanentError{&RejectError{Index: i, Err: err}} }

func (e *RejectError) Error() string {
	return fmt.Sprintf("change %d of the batch rejected: %v", e.Index, e.Err)
}
func (e *RejectError) Unwrap() error { return e.Err }
