package sinktest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

// store is a destination of tables in memory, with all that a transactional sink needs.
type store struct {
	mu          sync.Mutex
	tables      map[decode.Name]map[string]sinktest.Row
	checkpoints map[[2]string]decode.Checkpoint
	epochs      map[[2]string]uint64
	attempts    map[uint32]string          // source table -> incarnation, attempt
	into        map[decode.Name]decode.LSN // destination table -> the run that it was filled by
	chunks      map[string]bool
}

func newStore() *store {
	return &store{tables: map[decode.Name]map[string]sinktest.Row{}, checkpoints: map[[2]string]decode.Checkpoint{}, epochs: map[[2]string]uint64{},
		attempts: map[uint32]string{}, into: map[decode.Name]decode.LSN{}, chunks: map[string]bool{}}
}

func (s *store) rows(rel *decode.Relation) []sinktest.Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.tables[rel.Qualified()]))
}

// reference is a sink on a store that keeps all promises, but one if it is told so.
type reference struct {
	*store
	broken string
	start  sink.Start
	isOpen bool
	held   []*decode.Change // of the open transaction
}

func (r *reference) key() [2]string { return [2]string{r.start.Group, r.start.Worker} }

func (r *reference) Open(ctx context.Context, st sink.Start) (decode.Checkpoint, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isOpen, r.start = false, st
	if r.broken != "keeps a transaction over Open" {
		r.held = nil
	}
	if r.epochs[r.key()] > st.Epoch && r.broken != "takes any epoch" {
		return decode.Checkpoint{}, sink.ErrLeaseLost
	}
	r.epochs[r.key()], r.isOpen = st.Epoch, true
	return r.checkpoints[r.key()], ctx.Err()
}

func (r *reference) allowed(ctx context.Context, epoch uint64) error {
	if err := ctx.Err(); err != nil {
		if r.broken == "permanent end" {
			return sink.Permanent(err)
		}
		return err
	}
	if !r.isOpen || r.broken != "takes any epoch" && r.epochs[r.key()] != epoch {
		return errors.Join(sink.ErrLeaseLost, errors.New("not open"))
	}
	return nil
}

func (r *reference) Write(ctx context.Context, b *sink.Batch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.allowed(ctx, b.Epoch)
	for i, c := range b.Changes {
		if c.Op < decode.OpInsert || c.Op > decode.OpMessage {
			err = sink.Reject(i, sink.ErrUnsupported)
		}
		if r.broken == "half batches" && err == nil {
			r.apply(c)
		}
	}
	if err != nil {
		r.isOpen = r.broken == "stays open behind errors"
		r.held = nil
		return err
	}
	for _, c := range b.Changes {
		if r.broken != "keeps bytes" {
			c = c.Clone()
		}
		r.held = append(r.held, c)
	}
	if b.More && r.broken != "commits more" {
		return nil
	}
	for _, c := range r.held {
		r.apply(c)
	}
	r.held = nil
	if r.broken != "forgets idle checkpoints" || len(b.Changes) > 0 {
		r.checkpoints[r.key()] = b.Checkpoint
	}
	return nil
}

func (r *reference) Abort(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isOpen = false
	if r.broken != "keeps a transaction over Open" {
		r.held = nil
	}
	return nil
}

func (r *reference) table(n decode.Name) map[string]sinktest.Row {
	if r.tables[n] == nil {
		r.tables[n] = map[string]sinktest.Row{}
	}
	return r.tables[n]
}

func (r *reference) apply(c *decode.Change) {
	switch c.Op {
	case decode.OpTruncate:
		for _, rel := range c.Truncate.Relations {
			clear(r.table(rel.Qualified()))
		}
	case decode.OpDelete:
		delete(r.table(c.Relation.Qualified()), c.Old[0].String())
	case decode.OpInsert, decode.OpUpdate:
		rows, old := r.table(c.Relation.Qualified()), c.New[0].String()
		if c.Old != nil && (c.Op == decode.OpUpdate || r.broken != "ignores the old key of inserts") {
			old = c.Old[0].String()
		}
		row := sinktest.Row{}
		maps.Copy(row, rows[old])
		delete(rows, old)
		for i, v := range c.New {
			text := v.String()
			switch {
			case v.IsNull():
				row[c.Relation.Columns[i].Name] = nil
			case v.Presence() == decode.Present || r.broken == "empties unchanged":
				row[c.Relation.Columns[i].Name] = &text
			}
		}
		rows[c.New[0].String()] = row
	}
}

func (r *reference) BeginTable(ctx context.Context, t sink.CopyTable) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.allowed(ctx, r.start.Epoch); err != nil {
		return err
	}
	attempt := fmt.Sprint(r.start.Incarnation, t.Attempt)
	if r.broken == "one incarnation" {
		attempt = fmt.Sprint(t.Attempt)
	}
	if r.attempts[t.Source] == attempt && r.broken != "empties always" {
		return nil
	}
	if t.Resumed && r.broken != "resumes anything" {
		return errors.New("nothing is known of the attempt")
	}
	name, run := t.Relation.Qualified(), r.into[t.Relation.Qualified()]
	if (run != t.Point || r.attempts[t.Source] != "" || r.broken == "empties always") && r.broken != "empties never" {
		clear(r.table(name))
	}
	r.attempts[t.Source], r.into[name] = attempt, t.Point
	return nil
}

func (r *reference) WriteChunk(ctx context.Context, c *sink.CopyChunk) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.allowed(ctx, c.Epoch); err != nil {
		return err
	}
	id := r.start.Incarnation + c.ID.String()
	if r.chunks[id] && r.broken != "writes chunks twice" {
		return nil
	}
	reader := decode.NewCopyReader(c.Table.Relation, bytes.Clone(c.Data))
	for {
		row, ok, err := reader.Next(nil)
		if err != nil || !ok {
			r.chunks[id] = true
			return err
		}
		change := &decode.Change{Op: decode.OpInsert, Relation: c.Table.Relation, New: row}
		if r.chunks[id] { // as a table without a key would have it
			change.New = slices.Clone(row)
			change.New[0] = decode.TextValue(row[0].Type(), []byte(row[0].String()+" again"))
		}
		r.apply(change)
	}
}

func (r *reference) EndTable(ctx context.Context, _ sink.CopyTable) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.allowed(ctx, r.start.Epoch)
}

// wrapped has the reference behind Unwrap.
type wrapped struct{ sink.Sink }

func (w wrapped) Unwrap() sink.Sink { return w.Sink }

func runReference(t *testing.T, broken string) {
	sinktest.Run(t, func(*testing.T) sinktest.Harness {
		s := newStore()
		return sinktest.Harness{
			Open:     func(testing.TB) sink.Sink { return wrapped{&reference{store: s, broken: broken}} },
			Rows:     func(_ testing.TB, rel *decode.Relation) []sinktest.Row { return s.rows(rel) },
			MaxValue: 1 << 20,
		}
	})
}

func TestReferencePasses(t *testing.T) { runReference(t, "") }

const envBroken = "FLO_SINKTEST_BROKEN"

// TestBroken is what a child runs: it has to fail.
func TestBroken(t *testing.T) {
	broken := os.Getenv(envBroken)
	if broken == "" {
		t.Skip("run by TestSuiteFindsBrokenSinks")
	}
	runReference(t, broken)
}

func TestSuiteFindsBrokenSinks(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for broken, found := range map[string]string{
		"":                               "", // the child itself is in order
		"keeps a transaction over Open":  "Transactional/Abort",
		"takes any epoch":                "Transactional/EarlierEpoch",
		"permanent end":                  "ContextEnds",
		"half batches":                   "Transactional/FailedBatch",
		"keeps bytes":                    "LargeTransaction",
		"commits more":                   "Transactional/More",
		"forgets idle checkpoints":       "Transactional/Checkpoint",
		"empties unchanged":              "NullAbsentUnchanged",
		"ignores the old key of inserts": "ReplacingInsert",
		"one incarnation":                "CopySink/NewIncarnation",
		"empties always":                 "CopySink/Restart",
		"empties never":                  "CopySink/NewAttempt",
		"resumes anything":               "CopySink/ResumedButLost",
		"writes chunks twice":            "CopySink/Repeats",
	} {
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestBroken$", "-test.v")
		cmd.Env = append(os.Environ(), envBroken+"="+broken)
		if broken == "" {
			cmd.Env = append(os.Environ(), envBroken+"=nothing")
		}
		out, err := cmd.CombinedOutput()
		failed := strings.Contains(string(out), "--- FAIL: TestBroken/"+found+" ")
		if found == "" {
			failed = err != nil
		}
		if failed != (found != "") {
			t.Errorf("a sink that %s: %s did not tell: %v\n%s", broken, found, err, out)
		}
	}
}
