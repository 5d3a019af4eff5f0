//go:build unix

package faults

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink/file"
)

// line is one of a file sink's lines, as decode.Change.AppendJSON describes them.
type line struct {
	Op      string
	Schema  string
	Table   string
	Key     json.RawMessage
	New     map[string]json.RawMessage
	Old     json.RawMessage
	Keep    []string `json:"unchanged"`
	Tables  []struct{ Schema, Table string }
	LSN     string
	Ordinal uint64
	XID     uint32
	Copy    string
	raw     []byte
}

func (l *line) position() (decode.Position, error) {
	lsn, err := decode.ParseLSN(l.LSN)
	return decode.Position{LSN: lsn, Ordinal: l.Ordinal}, err
}

// history is what a file holds once repeats are dropped.
type history struct {
	copied  []*line // of each table's last attempt
	changes []*line // in order of their positions
	point   decode.LSN
	attempt uint64
	again   int // how often the file goes back to an earlier position
	repeats int // changes that came again
}

// readHistory reads a folder of the file sink. Repeats must be what they repeat, byte by byte, and
// go on without a gap until they reach what is new; anything else is an error.
func readHistory(folder string) (*history, error) {
	f, err := os.Open(filepath.Join(folder, file.Name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := &history{}
	r := &repeats{history: h, at: map[decode.Position]int{}, copies: map[string]*tableCopy{}}
	in := bufio.NewReaderSize(f, 1<<20)
	for n := 1; ; n++ {
		raw, err := in.ReadBytes('\n')
		if err == io.EOF && len(raw) == 0 {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		l := &line{raw: raw}
		if err := json.Unmarshal(raw, l); err != nil {
			return nil, fmt.Errorf("line %d: %w: %.200s", n, err, raw)
		}
		if err := r.take(l); err != nil {
			return nil, fmt.Errorf("line %d: %w: %.200s", n, err, raw)
		}
	}
	for _, c := range r.copies {
		for _, l := range c.rows {
			h.copied = append(h.copied, l)
		}
	}
	return h, nil
}

type repeats struct {
	*history
	at     map[decode.Position]int // index in changes
	next   int                     // index of the change that is due
	copies map[string]*tableCopy   // by the table's OID
}

// tableCopy is what the last attempt copied of a table.
type tableCopy struct {
	attempt uint64
	point   decode.LSN
	rows    map[string]*line // by identity
}

func (r *repeats) take(l *line) error {
	if l.Copy != "" {
		return r.takeCopied(l)
	}
	pos, err := l.position()
	if err != nil {
		return err
	}
	i, known := r.at[pos]
	if !known {
		if r.next != len(r.changes) {
			return fmt.Errorf("%s is new, while what was written before is being repeated", pos)
		}
		if n := len(r.changes); n > 0 {
			if err := follows(r.changes[n-1], pos); err != nil {
				return err
			}
		}
		r.at[pos] = len(r.changes)
		r.changes = append(r.changes, l)
		r.next++
		return nil
	}
	if i != r.next {
		if i > r.next {
			return fmt.Errorf("%s comes where %s is due", pos, r.changes[r.next].LSN)
		}
		r.again++
	}
	if !bytes.Equal(r.changes[i].raw, l.raw) {
		return fmt.Errorf("%s has two contents; before it was %.200s", pos, r.changes[i].raw)
	}
	r.repeats++
	r.next = i + 1
	return nil
}

// follows checks that pos may come behind a change. Changes that a copy holds are left out: the oracle counts
// the others.
func follows(last *line, pos decode.Position) error {
	before, err := last.position()
	if err != nil {
		return err
	}
	if pos.Compare(before) > 0 {
		return nil
	}
	return fmt.Errorf("%s comes behind %s", pos, before)
}

// takeCopied keeps the last attempt's rows: "point:table:attempt:range:row".
func (r *repeats) takeCopied(l *line) error {
	parts := strings.Split(l.Copy, ":")
	if len(parts) != 5 {
		return fmt.Errorf("identity %q", l.Copy)
	}
	attempt, err := strconv.ParseUint(parts[2], 10, 32)
	if err != nil {
		return err
	}
	point, err := decode.ParseLSN(parts[0])
	if err != nil {
		return err
	}
	c := r.copies[parts[1]]
	if c == nil || attempt > c.attempt {
		c = &tableCopy{attempt: attempt, point: point, rows: map[string]*line{}}
		r.copies[parts[1]] = c
	}
	if attempt < c.attempt {
		return fmt.Errorf("a row of attempt %d behind one of attempt %d", attempt, c.attempt)
	}
	if point != c.point {
		return fmt.Errorf("attempt %d has two points, %s and %s", attempt, c.point, point)
	}
	if r.attempt = max(r.attempt, attempt); r.point == 0 || point < r.point {
		r.point = point
	}
	if before := c.rows[l.Copy]; before != nil && !bytes.Equal(before.raw, l.raw) {
		return fmt.Errorf("%s has two contents; before it was %.200s", l.Copy, before.raw)
	}
	c.rows[l.Copy] = l
	return nil
}

// image is the tables as the lines make them: rows by key, or just rows where there is no key.
type image map[string]*tableImage

type tableImage struct {
	rows  map[string]map[string]json.RawMessage
	loose []map[string]json.RawMessage
}

func (im image) table(schema, name string) *tableImage {
	full := pgx.Identifier{schema, name}.Sanitize()
	if im[full] == nil {
		im[full] = &tableImage{rows: map[string]map[string]json.RawMessage{}}
	}
	return im[full]
}

// replay applies a history. A change that meets no row, or an insert that meets one, is an error:
// something is missing before it, or came twice.
func (h *history) replay() (image, error) {
	im := image{}
	for _, l := range append(append([]*line(nil), h.copied...), h.changes...) {
		if err := im.apply(l); err != nil {
			return nil, fmt.Errorf("%w: %.300s", err, l.raw)
		}
	}
	return im, nil
}

func (im image) apply(l *line) error {
	if l.Op == "truncate" {
		for _, t := range l.Tables {
			*im.table(t.Schema, t.Table) = tableImage{rows: map[string]map[string]json.RawMessage{}}
		}
		return nil
	}
	t := im.table(l.Schema, l.Table)
	key := string(l.Key)
	if l.Key == nil {
		return t.applyLoose(l)
	}
	switch l.Op {
	case "insert":
		if t.rows[key] != nil {
			return fmt.Errorf("insert of a row that is there")
		}
		t.rows[key] = l.New
	case "update":
		old := key
		if l.Old != nil {
			old = string(l.Old)
		}
		row := t.rows[old]
		if row == nil {
			return fmt.Errorf("update of a row that is not there")
		}
		for _, c := range l.Keep {
			l.New[c] = row[c]
		}
		delete(t.rows, old)
		if t.rows[key] != nil {
			return fmt.Errorf("update to a key that is taken")
		}
		t.rows[key] = l.New
	case "delete":
		if t.rows[key] == nil {
			return fmt.Errorf("delete of a row that is not there")
		}
		delete(t.rows, key)
	default:
		return fmt.Errorf("operation %q", l.Op)
	}
	return nil
}

// applyLoose applies a change of a table without a key, or whose rows are identified as a whole.
func (t *tableImage) applyLoose(l *line) error {
	if l.Op == "insert" {
		t.loose = append(t.loose, l.New)
		return nil
	}
	var old map[string]json.RawMessage
	if err := json.Unmarshal(l.Old, &old); err != nil {
		return fmt.Errorf("%s without a key: %w", l.Op, err)
	}
	i := slices.IndexFunc(t.loose, func(row map[string]json.RawMessage) bool {
		return maps.EqualFunc(row, old, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
	})
	if i < 0 {
		return fmt.Errorf("%s of a row that is not there", l.Op)
	}
	if l.Op == "delete" {
		t.loose = slices.Delete(t.loose, i, i+1)
		return nil
	}
	for _, c := range l.Keep {
		l.New[c] = old[c]
	}
	t.loose[i] = l.New
	return nil
}

// load writes the image into a database that has the tables, empty.
func (im image) load(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for name, t := range im {
		rows := append([]map[string]json.RawMessage(nil), t.loose...)
		for _, row := range t.rows {
			rows = append(rows, row)
		}
		if _, err := conn.Exec(ctx, `CREATE TEMP TABLE lines (row jsonb)`); err != nil {
			return err
		}
		_, err := conn.CopyFrom(ctx, pgx.Identifier{"lines"}, []string{"row"}, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
			return []any{rows[i]}, nil
		}))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		columns, err := columnsOf(ctx, conn, name)
		if err != nil {
			return err
		}
		for _, sql := range []string{
			`INSERT INTO ` + name + ` (` + columns + `) OVERRIDING SYSTEM VALUE SELECT ` + columns + ` FROM lines, jsonb_populate_record(NULL::` + name + `, row)`,
			`DROP TABLE lines`,
		} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func columnsOf(ctx context.Context, conn *pgx.Conn, table string) (list string, err error) {
	err = conn.QueryRow(ctx, `SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
		WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''`, table).Scan(&list)
	return list, err
}
