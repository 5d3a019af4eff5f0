package postgres

import (
	"testing"

	"github.com/pgflo/flo/sink"
)

func TestTriedRowsLeaveNothingAndFailAsTheCommitWould(t *testing.T) {
	ctx := testContext(t)
	r := newRig(t, copyDDL+`; ALTER TABLE t ADD UNIQUE ("Key", w) DEFERRABLE INITIALLY DEFERRED, ADD CHECK ("Key" <> 13), ADD CONSTRAINT late UNIQUE (w) DEFERRABLE INITIALLY DEFERRED`)
	tab := copyTable(copyRel(), 1)
	r.begin(tab)
	one := func(data string, rows uint64) *sink.CopyChunk {
		c := chunk(tab, 0, 10, 3)
		c.Data, c.Rows = []byte(data), rows
		return c
	}
	for name, c := range map[string]struct {
		chunk *sink.CopyChunk
		fails bool
	}{
		"good":            {one("1\t\\N\ta\n2\t\\N\tb\n", 2), false},
		"none":            {one("", 0), false},
		"a check":         {one("1\t\\N\ta\n13\t\\N\tb\n", 2), true},
		"a deferred key":  {one("1\t\\N\ta\n2\t\\N\ta\n", 2), true},
		"no number":       {one("x\t\\N\ta\n", 1), true},
		"a row too few":   {one("1\t\\N\ta\n", 2), true},
		"columns missing": {one("1\n", 1), true},
	} {
		err := r.sink.TryChunk(ctx, c.chunk)
		if (err != nil) != c.fails || err != nil && !sink.IsPermanent(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.want(`SELECT count(*) FROM t`, is("0"))
	r.chunk(chunk(tab, 0, 10, 3)) // nothing was recorded either
	if err := r.end(tab, 1, 3); err != nil {
		t.Error(err)
	}
}
