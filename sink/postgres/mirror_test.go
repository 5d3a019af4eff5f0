package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/ddlcases"
	origin "github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/sink"
)

// mirror is a source with flo's event triggers, and a sink at a destination to which all that the source does is
// brought, through its logical decoding: rows and schema changes.
type mirror struct {
	*rig
	src    *flotest.DB
	slot   string
	secret string
	parser *decode.Parser
	routes map[string]string              // source table to destination table
	column map[string]string              // source column to destination column
	hide   []string                       // columns that a rule leaves out
	copies map[uint32]bool                // tables that wait for a fresh copy
	ahead  bool                           // copies tell of the tables' structure
	apart  bool                           // a batch for each of the source's transactions; else one for all
	edit   func(s *decode.SchemaChange)   // changes what the triggers said
	edited func(changes []*decode.Change) // sees all
}

func newMirror(t *testing.T, opts ...Option) *mirror {
	t.Helper()
	src := flotest.Postgres(t)
	conn, err := pgx.ParseConfig(src.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := origin.Config{Conn: conn}
	session := src.Conn(t)
	if _, err := c.EnsureDDL(t.Context(), session, "g"); err != nil {
		t.Fatal(err)
	}
	m := &mirror{rig: newRig(t, "", append([]Option{WithReplicaRole()}, opts...)...), src: src, slot: src.Name, parser: decode.NewParser()}
	if m.secret, err = c.DDLSecret(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	src.Exec(t, "CREATE PUBLICATION everything FOR ALL TABLES")
	src.Exec(t, "SELECT pg_create_logical_replication_slot('"+m.slot+"', 'pgoutput')")
	return m
}

// read gives what the source has done since the last call, by transaction.
func (m *mirror) read() (out [][]*decode.Change) {
	m.t.Helper()
	arena := decode.NewArena()
	var tx []*decode.Change
	for _, row := range m.src.Query(m.t, `SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('`+m.slot+`', NULL, NULL,
		'proto_version', '1', 'publication_names', 'everything', 'messages', 'true')`) {
		frame, err := hex.DecodeString(row[0])
		if err != nil {
			m.t.Fatal(err)
		}
		switch frame[0] {
		case 'R':
			if _, err := m.parser.Relation(frame); err != nil {
				m.t.Fatal(err)
			}
		case 'Y':
			if err := m.parser.Type(frame); err != nil {
				m.t.Fatal(err)
			}
		case 'M':
			if s := m.schemaChange(frame); s != nil {
				tx = append(tx, &decode.Change{Op: decode.OpSchema, Schema: s})
			}
		case 'I', 'U', 'D', 'T':
			ch, err := m.parser.Change(frame, arena)
			if err != nil {
				m.t.Fatal(err)
			}
			tx = append(tx, ch)
		case 'C':
			if tx != nil {
				out = append(out, tx)
			}
			tx = nil
		}
	}
	return out
}

func (m *mirror) schemaChange(frame []byte) *decode.SchemaChange {
	prefix := []byte("flo\x00")
	if !bytes.HasPrefix(frame[10:], prefix) {
		return nil
	}
	content := frame[10+len(prefix):]
	text, ok := strings.CutPrefix(string(content[4:4+binary.BigEndian.Uint32(content)]), m.secret)
	if !ok {
		m.t.Fatalf("a message without the secret: %s", content)
	}
	s := new(decode.SchemaChange)
	if err := json.Unmarshal([]byte(text), s); err != nil {
		m.t.Fatal(err)
	}
	if m.edit != nil {
		m.edit(s)
	}
	return s
}

// route does what the worker's rules do.
func (m *mirror) route(ch *decode.Change) {
	if s := ch.Schema; s != nil {
		for i := range s.Tables {
			t := &s.Tables[i]
			if to := m.routes[t.Name]; to != "" {
				name := t.Qualified()
				t.Source, t.Name = &name, to
			}
			t.Columns = slices.DeleteFunc(t.Columns, func(c decode.ColumnShape) bool {
				if slices.Contains(m.hide, c.Name) {
					t.LeftOut = append(t.LeftOut, c.Name)
					return true
				}
				return false
			})
			for k := range t.Columns {
				if to := m.column[t.Columns[k].Name]; to != "" {
					t.Columns[k].Source, t.Columns[k].Name = t.Columns[k].Name, to
				}
			}
		}
	}
	if ch.Relation == nil {
		return
	}
	r := *ch.Relation
	if to := m.routes[r.Name]; to != "" {
		r.Name = to
	}
	r.Columns = slices.Clone(r.Columns)
	for i := len(r.Columns) - 1; i >= 0; i-- {
		if slices.Contains(m.hide, r.Columns[i].Name) {
			r.Columns = slices.Delete(r.Columns, i, i+1)
			if ch.New != nil {
				ch.New = slices.Delete(slices.Clone(ch.New), i, i+1)
			}
			if ch.Old != nil {
				ch.Old = slices.Delete(slices.Clone(ch.Old), i, i+1)
			}
		} else if to := m.column[r.Columns[i].Name]; to != "" {
			r.Columns[i].Name = to
		}
	}
	ch.Relation = &r
}

// bring runs SQL at the source, transactions parted by ";;", and applies what comes of it.
func (m *mirror) bring(sql string) error {
	m.t.Helper()
	for _, tx := range strings.Split(sql, ";;") {
		m.src.Exec(m.t, tx)
	}
	return m.deliver()
}

// taken gives what the source has done since the last call, by transaction, as a worker would hand it to the sink.
func (m *mirror) taken() (out [][]*decode.Change) {
	m.t.Helper()
	m.copies = map[uint32]bool{}
	for _, tx := range m.read() {
		out = append(out, slices.DeleteFunc(tx, func(ch *decode.Change) bool {
			if ch.Schema != nil {
				for i := range ch.Schema.Tables {
					if t := &ch.Schema.Tables[i]; t.Rewritten {
						m.copies[t.OID], t.CopyFollows = true, true
					}
				}
			}
			waits := ch.Relation != nil && m.copies[ch.Relation.OID]
			m.route(ch)
			return waits // for a fresh copy brings it
		}))
	}
	return out
}

func (m *mirror) deliver() error {
	m.t.Helper()
	var all []*decode.Change
	give := func(changes []*decode.Change) error {
		if m.edited != nil {
			m.edited(changes)
		}
		ordinals(changes)
		return m.sink.Write(testContext(m.t), &sink.Batch{Changes: changes, Checkpoint: m.checkpoint(), Epoch: m.st.Epoch})
	}
	for _, tx := range m.taken() {
		if !m.apart {
			all = append(all, tx...)
		} else if err := give(tx); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		if err := give(all); err != nil {
			return err
		}
	}
	m.copyAll()
	return nil
}

// copyAll copies what waits for a fresh copy.
func (m *mirror) copyAll() {
	m.t.Helper()
	for oid := range m.copies {
		if m.routes != nil {
			continue
		}
		for _, r := range m.src.Query(m.t, "SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = $1", oid) {
			m.copyAfresh(r[0], r[1])
		}
	}
}

// copyAfresh is what the engine does for a table that was rewritten.
func (m *mirror) copyAfresh(schema, table string) {
	m.t.Helper()
	var columns []string
	for _, r := range m.src.Query(m.t, "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum", ident(schema, table)) {
		columns = append(columns, r[0])
	}
	list := strings.Join(columns, ", ")
	var rows bytes.Buffer
	if _, err := m.src.Conn(m.t).PgConn().CopyTo(m.t.Context(), &rows, "COPY "+ident(schema, table)+" ("+list+") TO STDOUT"); err != nil {
		m.t.Fatal(err)
	}
	dst := m.db.Conn(m.t)
	if _, err := dst.Exec(m.t.Context(), "SET session_replication_role = replica; DELETE FROM ONLY "+ident(schema, table)); err != nil {
		m.t.Fatal(err)
	}
	if _, err := dst.PgConn().CopyFrom(m.t.Context(), &rows, "COPY "+ident(schema, table)+" ("+list+") FROM STDIN"); err != nil {
		m.t.Fatal(err)
	}
}

// do is bring that must work and leave both sides equal.
func (m *mirror) do(sql string) {
	m.t.Helper()
	if err := m.bring(sql); err != nil {
		m.t.Fatalf("%s\n%v", sql, err)
	}
	m.equal(sql)
}

func catalog(t *testing.T, db *flotest.DB) []string {
	t.Helper()
	db.Exec(t, "SET search_path = pg_catalog")
	defer db.Exec(t, "RESET search_path")
	var out []string
	for _, r := range db.Query(t, ddlcases.CatalogSQL) {
		out = append(out, r[0])
	}
	return out
}

// tables gives all rows of all tables, by table.
func contents(t *testing.T, db *flotest.DB) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, r := range db.Query(t, `SELECT format('%I.%I', nspname, relname), (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
			WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
		FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'r' AND nspname NOT IN ('flo', 'pg_catalog', 'information_schema')`) {
		if r[1] == flotest.Null {
			continue
		}
		out[r[0]] = db.QueryString(t, "SELECT coalesce(string_agg(r, E'\n' ORDER BY r), '') FROM (SELECT ROW("+r[1]+")::text AS r FROM ONLY "+r[0]+") t")
	}
	return out
}

// equal compares both sides.
func (m *mirror) equal(after string) {
	m.t.Helper()
	src, dst := catalog(m.t, m.src), catalog(m.t, m.db)
	for _, line := range src {
		if !slices.Contains(dst, line) {
			m.t.Errorf("only at the source: %s", line)
		}
	}
	for _, line := range dst {
		if !slices.Contains(src, line) {
			m.t.Errorf("only at the destination: %s", line)
		}
	}
	was, is := contents(m.t, m.src), contents(m.t, m.db)
	for name, rows := range was {
		if is[name] != rows {
			m.t.Errorf("%s holds\n%s\nwant\n%s", name, is[name], rows)
		}
	}
	if m.t.Failed() {
		m.t.Fatalf("after %s", after)
	}
}
