package postgres

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/pgflo/flo/decode"
)

// maxPrograms bounds how many statement sequences, each of one to three prepared statements, a session
// keeps. The one used longest ago goes.
const maxPrograms = 256

// program is the statements that apply every change of one shape: one operation on one relation version
// with the same columns present.
type program struct {
	binding *binding
	pattern string
	steps   []*step
	used    uint64
}

// step is one statement of a program.
type step struct {
	sql     string
	oids    []uint32 // of the parameters
	params  []source
	counted bool // no row met is a missing row

	name     string
	prepared bool // sent to the server
	ready    bool // the server has said so
}

// source says which value a parameter takes.
type source struct {
	old bool
	col int
}

func (p source) of(ch *decode.Change) decode.Value {
	if p.old {
		return ch.Old[p.col]
	}
	return ch.New[p.col]
}

// programs keeps a session's.
type programs struct {
	all    []*program
	clock  uint64
	serial uint64
}

func (p *programs) clear() { p.all = nil } // the serial goes on: names are never used twice

func (p *programs) name() string {
	p.serial++
	return "flo_" + strconv.FormatUint(p.serial, 10)
}

// use marks one as used, and gives the one that has to go for it, or nil.
func (p *programs) use(one *program) *program {
	p.clock++
	fresh := one.used == 0
	one.used = p.clock
	if !fresh {
		return nil
	}
	p.all = append(p.all, one)
	if len(p.all) <= maxPrograms {
		return nil
	}
	at := 0
	for i, q := range p.all {
		if q.used < p.all[at].used {
			at = i
		}
	}
	victim := p.all[at]
	p.all = slices.Delete(p.all, at, at+1)
	delete(victim.binding.programs, victim.pattern)
	return victim
}

// settle is the session's, for the programs.
func (p *programs) settle() {
	for _, one := range p.all {
		for _, st := range one.steps {
			st.prepared = st.prepared && st.ready
		}
	}
}

// moved says whether an update changes a GENERATED ALWAYS identity.
type moved byte

const (
	stays moved = iota
	mayMove
	moves
)

// program gives the one for a change, made the first time.
func (a *rowApplier) program(b *binding, ch *decode.Change) (*program, error) {
	mv := b.moved(ch)
	replaces := b.replaces(ch)
	a.pattern = append(a.pattern[:0], byte(ch.Op), byte(mv), flag(a.heal), flag(ch.OldKey), flag(replaces))
	for i := range ch.New {
		p := ch.New[i].Presence()
		if p == decode.Null {
			p = decode.Present // a parameter either way
		}
		a.pattern = append(a.pattern, byte(p))
	}
	for i := range ch.Old {
		a.pattern = append(a.pattern, byte(ch.Old[i].Presence()))
	}
	if p := b.programs[string(a.pattern)]; p != nil {
		return p, nil
	}
	p := &program{binding: b, pattern: string(a.pattern)}
	c := compiler{binding: b, ch: ch, heal: a.heal, moved: mv, replaces: replaces}
	var err error
	switch ch.Op {
	case decode.OpInsert:
		err = c.insert()
	case decode.OpUpdate:
		err = c.update()
	case decode.OpDelete:
		err = c.delete()
	}
	if err != nil {
		return nil, err
	}
	p.steps = c.steps
	b.programs[p.pattern] = p
	return p, nil
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// moved compares the identities that cannot stand in a SET list.
func (b *binding) moved(ch *decode.Change) moved {
	out := stays
	if ch.Op != decode.OpUpdate {
		return out
	}
	for _, i := range b.always {
		if now := ch.New[i].Presence(); now != decode.Present && now != decode.Null {
			continue
		}
		switch {
		case ch.Old != nil && ch.Old[i].Presence() != decode.Absent:
			if ch.Old[i].Presence() != ch.New[i].Presence() || !bytes.Equal(ch.Old[i].Bytes(), ch.New[i].Bytes()) {
				return moves
			}
		case ch.Old == nil && slices.Contains(b.keyCols, i): // no old row: the key is as it was
		default:
			out = mayMove
		}
	}
	return out
}

// replaces reports whether an insert that takes the place of another row (its Old) has another key than
// that one, or no index that ON CONFLICT can meet it by.
func (b *binding) replaces(ch *decode.Change) bool {
	if ch.Op != decode.OpInsert || ch.Old == nil {
		return false
	}
	return b.key == nil || b.key.deferrable || slices.ContainsFunc(b.keyCols, func(i int) bool { return !bytes.Equal(ch.Old[i].Bytes(), ch.New[i].Bytes()) })
}

// deferrable reports whether the table has keys or exclusion constraints that the source may check later than
// each row.
func (b *binding) deferrable() bool { return b.table.deferrable }

// compiler writes the statements for one shape of change.
type compiler struct {
	binding *binding
	ch      *decode.Change
	heal    bool
	moved   moved
	// replaces: an insert takes the place of the row that Old names, and does not find it by its own key.
	replaces bool
	steps    []*step

	sql    strings.Builder
	params []source
	oids   []uint32
}

// param gives the placeholder of a value. Its type is the column's, so that text becomes a value by the
// type's input function, as in COPY.
func (c *compiler) param(p source) string {
	at := slices.Index(c.params, p)
	if at < 0 {
		at = len(c.params)
		c.params = append(c.params, p)
		c.oids = append(c.oids, c.binding.columns[p.col].typ)
	}
	return "$" + strconv.Itoa(at+1)
}

func (c *compiler) write(parts ...string) {
	for _, p := range parts {
		c.sql.WriteString(p)
	}
}

// end closes a statement.
func (c *compiler) end(counted bool) {
	c.steps = append(c.steps, &step{sql: c.sql.String(), oids: c.oids, params: c.params, counted: counted})
	c.sql.Reset()
	c.params, c.oids = nil, nil
}

// written gives the relation columns of the new row that can be written.
func (c *compiler) written() []int {
	var cols []int
	for i := range c.ch.New {
		p := c.ch.New[i].Presence()
		if (p == decode.Present || p == decode.Null) && !c.binding.columns[i].generated {
			cols = append(cols, i)
		}
	}
	return cols
}

func (c *compiler) insert() error {
	b, cols := c.binding, c.written()
	if c.replaces {
		if err := c.delete(); err != nil {
			return err
		}
		c.steps[len(c.steps)-1].counted = false
	}
	keyed := b.key != nil
	for _, k := range b.keyCols {
		keyed = keyed && slices.Contains(cols, k)
	}
	var set []int
	always := false
	for _, i := range cols {
		if slices.Contains(b.keyCols, i) {
			continue
		}
		if b.columns[i].always {
			always = true
			continue
		}
		set = append(set, i)
	}
	switch {
	case !keyed, b.key.deferrable && !c.heal:
		c.values(cols)
	case always, b.key.deferrable && len(set) == 0:
		// The row that stood there may have another identity, which cannot be set.
		c.write("DELETE FROM ", b.table.from, " AS t WHERE ", c.byKey("t", false))
		c.end(false)
		c.values(cols)
	case b.key.deferrable: // cannot arbitrate ON CONFLICT
		c.write("WITH u AS (UPDATE ", b.table.from, " AS t SET ", c.assign(set), " WHERE ", c.byKey("t", false), " RETURNING 1) ")
		c.into(cols)
		c.write("SELECT ", c.list(cols), " WHERE NOT EXISTS (SELECT FROM u)")
	default:
		c.values(cols)
		c.onConflict(cols)
	}
	c.end(false)
	return nil
}

// onConflict overwrites the row that an INSERT meets.
func (c *compiler) onConflict(cols []int) {
	b := c.binding
	c.write(" ON CONFLICT (", c.names(b.keyCols), ") DO ")
	before := "UPDATE SET "
	for _, i := range cols {
		if !slices.Contains(b.keyCols, i) {
			c.write(before, b.columns[i].quoted, " = EXCLUDED.", b.columns[i].quoted)
			before = ", "
		}
	}
	if before != ", " {
		c.write("NOTHING")
	}
}

// into writes the head of an INSERT.
func (c *compiler) into(cols []int) {
	c.write("INSERT INTO ", c.binding.table.sql, " (", c.names(cols), ") OVERRIDING SYSTEM VALUE ")
}

func (c *compiler) values(cols []int) {
	if len(cols) == 0 {
		c.write("INSERT INTO ", c.binding.table.sql, " DEFAULT VALUES")
		return
	}
	c.into(cols)
	c.write("VALUES (", c.list(cols), ")")
}

func (c *compiler) names(cols []int) string {
	out := make([]string, len(cols))
	for n, i := range cols {
		out[n] = c.binding.columns[i].quoted
	}
	return strings.Join(out, ", ")
}

func (c *compiler) list(cols []int) string {
	out := make([]string, len(cols))
	for n, i := range cols {
		out[n] = c.param(source{col: i})
	}
	return strings.Join(out, ", ")
}

func (c *compiler) assign(cols []int) string {
	out := make([]string, len(cols))
	for n, i := range cols {
		out[n] = c.binding.columns[i].quoted + " = " + c.param(source{col: i})
	}
	return strings.Join(out, ", ")
}

func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

func (c *compiler) update() error {
	b := c.binding
	find, err := c.find()
	if err != nil {
		return err
	}
	if c.moved == moves {
		c.move(find, nil)
		return nil
	}
	var set, maybe []int
	for _, i := range c.written() {
		switch {
		case b.columns[i].always:
			maybe = append(maybe, i)
		case c.ch.Old == nil && slices.Contains(b.keyCols, i): // as it was
		default:
			set = append(set, i)
		}
	}
	if len(set) > 0 {
		c.write("UPDATE ", b.table.from, " AS t SET ", c.assign(set))
		c.where(" FROM ", "t", find)
		c.end(true)
	}
	if c.moved == mayMove {
		find.after = true
		c.move(find, maybe)
	}
	return nil
}

// move gives a row another GENERATED ALWAYS identity, which no SET can: the row is taken out and put back
// with the new values, and whatever the change does not carry stays. With maybe, only if one of those
// identities differs.
//
// The DELETE runs first because the INSERT reads what it returns, and a row deleted by the same
// transaction is no conflict to a unique index.
func (c *compiler) move(find finding, maybe []int) {
	b := c.binding
	c.write("WITH d AS (DELETE FROM ", b.table.from, " AS t")
	c.where(" USING ", "t", find)
	for n, i := range maybe {
		c.write(pick(n == 0, " AND (", " OR "), "t.", b.columns[i].quoted, " IS DISTINCT FROM ", c.param(source{col: i}))
	}
	if len(maybe) > 0 {
		c.write(")")
	}
	c.write(" RETURNING t.*) INSERT INTO ", b.table.sql, " (")
	written := c.written()
	var values []string
	for i := range b.table.columns {
		col := &b.table.columns[i]
		if col.generated {
			continue
		}
		c.write(pick(len(values) == 0, "", ", "), col.quoted)
		at := slices.IndexFunc(written, func(w int) bool { return b.columns[w] == col })
		if at < 0 {
			values = append(values, "d."+col.quoted)
			continue
		}
		values = append(values, c.param(source{col: written[at]}))
	}
	c.write(") OVERRIDING SYSTEM VALUE SELECT ", strings.Join(values, ", "), " FROM d")
	c.end(len(maybe) == 0)
}

func (c *compiler) delete() error {
	find, err := c.find()
	if err != nil {
		return err
	}
	c.write("DELETE FROM ", c.binding.table.from, " AS t")
	c.where(" USING ", "t", find)
	c.end(true)
	return nil
}
