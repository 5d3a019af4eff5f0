package sink

import (
	"context"
	"fmt"
)

// CopyPlanner is for a CopySink that wants to see all tables of a copy at once: to make ready what they
// need together, to say of all of them what doesn't fit, and to finish what is better done behind the rows.
//
// Both methods come again, with the same tables, when a copy is taken up again after a failure; what an
// earlier call has done must be no error. No other method of the sink is called meanwhile.
type CopyPlanner interface {
	CopySink
	// BeginCopy comes before the first BeginTable of an attempt; tables are in the order of their OIDs. It may answer with an
	// *AheadError: it then comes again without the tables that this names.
	BeginCopy(ctx context.Context, tables []CopyTable) error
	// EndCopy comes behind the last EndTable, before the first change behind the copy. A table that another
	// attempt has taken over meanwhile is left out: it comes with that one. It may answer with an *AheadError, too.
	EndCopy(ctx context.Context, tables []CopyTable) error
	// CopiesTogether reports whether EndCopy makes what spans tables: the worker then has them all copied again,
	// together, when a copy was cut short, and not only those that were not whole.
	CopiesTogether() bool
}

// AheadError is BeginCopy's or EndCopy's answer when tables have something in common with others, a type for example, that the source
// has altered since the last schema change that the sink was given: the rows that are still to come for the others are of
// the time before. The worker then leaves the tables to a later copy, which comes behind what was altered.
type AheadError struct {
	What    string
	Sources []uint32 // OIDs of the tables at the source
	Err     error    // why the copy can't begin, where that was tried
}

// Unwrap gives Err.
func (e *AheadError) Unwrap() error { return e.Err }

func (e *AheadError) Error() string {
	return fmt.Sprintf("the copy of %d tables is put off, for it is ahead of the stream: %s", len(e.Sources), e.What)
}
