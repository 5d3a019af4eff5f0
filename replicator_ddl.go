package flo

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/state"
)

// DDLSetupSQL is the SQL that installs what WithDDL needs at the source: schema flo, functions in it, and three event
// triggers. A superuser runs it, in the source's database, where flo's own role isn't one; roles are those that
// replicators use. It may be run again, and has to be for a version of flo that asks for it.
func DDLSetupSQL(roles ...string) string { return source.DDLSetup(roles...) }

// DDLRemovalSQL is the SQL that removes what DDLSetupSQL has made.
func DDLRemovalSQL() string { return source.DDLRemoval }

// schemaTracking is what a session does with schema changes. But for lookSoon it is the owner's.
type schemaTracking struct {
	on      bool
	secrets []string   // that were found in this session
	asked   decode.LSN // what is in the WAL below was written before the secret was read last
	scope   schemaScope

	lookSoon atomic.Bool // a table was made that belongs to the group, or one without a replica identity was altered
}

// schemaScope tells which tables belong to the group, those that don't exist any more included.
type schemaScope struct {
	all              bool               // whatever the database has
	schemas          map[string]bool    // all that is in them
	include, exclude []names.Pattern    // without publications of another owner; no include: all
	own              bool               // include and exclude count
	columns          map[uint32][]int16 // column lists of publications, by the table's OID
	lineages         *lineages
}

// ensureDDL installs the event triggers, if that is asked for.
func (s *replication) ensureDDL(ctx context.Context, conn *pgx.Conn) error {
	if !s.r.cfg.ddl || s.r.cfg.mode == CopyOnly {
		return nil
	}
	installed, err := s.r.source.EnsureDDL(ctx, conn, s.r.cfg.group)
	if err != nil {
		return err
	}
	if installed {
		s.log.InfoContext(ctx, "event triggers were installed at the source")
		s.r.described = nil
	}
	return nil
}

// trackSchema readies what the owner needs for schema changes.
func (s *replication) trackSchema(ctx context.Context) error {
	s.schema.on = s.r.cfg.ddl
	if !s.schema.on {
		return nil
	}
	if err := s.readSecret(ctx, s.conn); err != nil {
		return err
	}
	scope := schemaScope{lineages: &s.lineages}
	var err error
	if s.r.cfg.adopts() {
		var schemas []string
		if scope.all, schemas, err = source.PublishedScope(ctx, s.conn, s.published); err != nil {
			return err
		}
		scope.schemas = make(map[string]bool, len(schemas))
		for _, n := range schemas {
			scope.schemas[n] = true
		}
		if scope.columns, err = source.ColumnLists(ctx, s.conn, s.published); err != nil {
			return err
		}
	} else {
		scope.own = true
		if scope.include, err = names.ParseAll(s.r.cfg.tables); err != nil {
			return err
		}
		if scope.exclude, err = names.ParseAll(s.r.cfg.exclude); err != nil {
			return err
		}
	}
	s.schema.scope = scope
	return nil
}

func (s *replication) readSecret(ctx context.Context, conn *pgx.Conn) error {
	at, err := s.r.source.Position(ctx, conn)
	if err != nil {
		return err
	}
	s.schema.asked = at // if reading fails, too
	secret, err := s.r.source.DDLSecret(ctx, conn)
	if err != nil {
		return err
	}
	if len(secret) != decode.SchemaSecretLen {
		return fmt.Errorf("%w: the event triggers' secret has %d digits, not %d: let an administrator run DDLRemovalSQL and start again", ErrSourceSettings, len(secret), decode.SchemaSecretLen)
	}
	if !slices.Contains(s.schema.secrets, secret) {
		s.schema.secrets = append(s.schema.secrets, secret)
	}
	return nil
}

// describeSchema has the source describe the group's tables, those that this Run hasn't had described yet, until ctx ends.
func (s *replication) describeSchema(ctx context.Context) error {
	if !s.schema.on {
		return nil
	}
	if s.r.redescribe.Swap(false) || s.r.described == nil || s.made {
		s.r.described = map[uint32]bool{}
	}
	oids := slices.DeleteFunc(tableIDs(s.tables), func(oid uint32) bool { return s.r.described[oid] })
	backoff := pgsession.Backoff{}
	for len(oids) > 0 {
		err := s.describeOnce(ctx, oids)
		if err == nil {
			for _, oid := range oids {
				s.r.described[oid] = true
			}
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		if !transient(err) {
			s.warn(ctx, "the source could not describe its tables for sinks that have not seen how they were made: "+err.Error())
			return nil
		}
		if backoff.Wait(ctx) != nil {
			return nil
		}
	}
	return nil
}

func (s *replication) describeOnce(ctx context.Context, oids []uint32) error {
	conn, err := s.r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return s.r.source.Baseline(ctx, conn, oids)
}

// message takes a logical message with flo's prefix, and gives what is published in its place: a schema change
// without its secret and without what isn't the group's, or nothing, in as many changes. Anybody may write
// such messages. One that is staged may yet be rolled back.
func (st *streaming) message(ctx context.Context, frame []byte, staged bool) ([]byte, error) {
	const behind = decode.SchemaMessageHead + len(decode.SchemaPrefix) + 1 + 4 // the content's length
	var change *decode.SchemaChange
	if st.schema.on && len(frame) >= behind {
		genuine, err := st.genuine(ctx, decode.LSN(binary.BigEndian.Uint64(frame[2:])), frame[behind:], staged)
		if err != nil {
			return nil, err
		}
		if genuine {
			change = st.readSchema(frame[behind+decode.SchemaSecretLen:])
			st.tells(change)
			if change != nil && !staged {
				if err := st.aside(func() error { return st.rememberShapes(ctx, change.Tables) }); err != nil {
					return nil, err
				}
			}
		} else {
			st.r.status.forged()
			st.warn(ctx, fmt.Sprintf("messages with the prefix %q that are not of flo's event triggers are left out", decode.SchemaPrefix))
		}
	}
	return decode.AppendSchemaMessage(nil, frame[:decode.SchemaMessageHead], change)
}

// genuine compares the secret of a message, which was written at a position, with those that were read from the source,
// and reads it again if it is another one and may be newer: once for all forged messages that were written before.
func (st *streaming) genuine(ctx context.Context, at decode.LSN, content []byte, staged bool) (bool, error) {
	if st.knowsSecret(content) {
		return true, nil
	}
	if at < st.schema.asked || len(content) < decode.SchemaSecretLen {
		return false, nil
	}
	read := func() error { return st.readSecret(ctx, st.replication.conn) }
	var err error
	if staged { // its transaction may be open: one that makes the event triggers itself is not known yet
		err = st.aside(read)
	} else {
		err = st.asOf(ctx, st.packer.XID(), read)
	}
	if err != nil && transient(err) {
		return false, err
	}
	return st.knowsSecret(content), nil
}

func (st *streaming) knowsSecret(content []byte) bool {
	known := false
	for _, secret := range st.schema.secrets {
		if len(content) >= len(secret) && subtle.ConstantTimeCompare(content[:len(secret)], []byte(secret)) == 1 {
			known = true
		}
	}
	return known
}

// readSchema reads a genuine message, and leaves out what isn't the group's; nil if nothing is left.
func (st *streaming) readSchema(text []byte) *decode.SchemaChange {
	s := &decode.SchemaChange{}
	if err := json.Unmarshal(bytes.ToValidUTF8(text, []byte("\uFFFD")), s); err != nil {
		return &decode.SchemaChange{Failed: "the event trigger's message can't be read: " + err.Error()}
	}
	st.schema.scope.limit(s)
	for i := range s.Tables {
		t := &s.Tables[i]
		whole := slices.ContainsFunc(st.tables, func(o source.Table) bool { return o.OID == t.OID && o.HasIdentity })
		if !whole && t.Kind == "r" && t.Persistence == "p" && st.schema.scope.own {
			st.schema.lookSoon.Store(true)
		}
	}
	if !s.HasStructure() {
		return nil
	}
	return s
}

// rememberShapes adds tables to the group's record, by the names that they had.
func (s *replication) rememberShapes(ctx context.Context, tables []decode.TableShape) error {
	var list []state.Table
	for i := range tables {
		if t := &tables[i]; t.Kind == "r" {
			list = append(list, state.Table{OID: t.OID, Names: []decode.Name{t.Qualified()}, Ancestors: t.Ancestors})
		}
	}
	_, err := s.lineages.add(ctx, s.store, list)
	return err
}

// limit leaves out what isn't the group's.
func (c *schemaScope) limit(s *decode.SchemaChange) {
	known := c.lineages.names()
	has := func(oid uint32, n decode.Name, above []decode.Name) bool { return c.has(known, oid, n, above) }
	s.Tables = slices.DeleteFunc(s.Tables, func(t decode.TableShape) bool { return !has(t.OID, t.Qualified(), t.Ancestors) })
	if len(s.Tables) == 0 {
		s.Types = nil
	}
	c.listed(s)
	whole := c.all || c.own && len(c.include) == 0
	if !whole {
		s.Schemas = nil
	}
	kept := false // something of a table of the group
	rest := s.Dropped[:0:0]
	for _, d := range s.Dropped {
		ours := false
		switch {
		case d.Kind == "schema":
			ours = whole && d.Original
		case d.Kind == "table":
			ours = has(d.OID, decode.Name{Schema: d.Schema, Name: d.Name}, nil)
		case d.Kind == "table column" || d.Kind == "table constraint" || d.Kind == "default value":
			var n decode.Name
			if len(d.Address) > 1 {
				n = decode.Name{Schema: d.Address[0], Name: d.Address[1]}
			}
			ours = has(d.OID, n, nil)
		case d.Kind == "composite type column": // whose tables have the type nobody can tell
			rest = append(rest, d)
			continue
		default: // of an index or a type that is gone nobody can tell whose it was
			if ours = d.Original || kept; !ours {
				continue
			}
			rest = append(rest, d)
			continue
		}
		if ours {
			kept = true
			rest = append(rest, d)
		}
	}
	s.Dropped = rest
}

// listed leaves out columns that a publication's list doesn't have.
func (c *schemaScope) listed(s *decode.SchemaChange) {
	for i := range s.Tables {
		t := &s.Tables[i]
		list := c.columns[t.OID]
		if list == nil {
			continue
		}
		t.Columns = slices.DeleteFunc(t.Columns, func(col decode.ColumnShape) bool {
			out := !slices.Contains(list, col.Num)
			if out {
				t.LeftOut = append(t.LeftOut, col.Name)
			}
			return out
		})
	}
}

// structure gives what is copied of tables and, with schema changes, how they are made.
func (s *replication) structure(ctx context.Context, conn *pgx.Conn, oids []uint32) (source.Structure, error) {
	if !s.schema.on {
		published, err := s.r.source.PublishedTables(ctx, conn, s.published)
		tables := make(map[uint32]source.Table, len(published))
		for _, t := range published {
			tables[t.OID] = t
		}
		return source.Structure{Tables: tables}, err
	}
	now, err := s.r.source.StructureAt(ctx, conn, s.slot.Snapshot, s.published, oids)
	if err != nil || len(s.schema.scope.columns) == 0 {
		return now, err
	}
	for oid, text := range now.Shapes {
		var c decode.SchemaChange
		if err := json.Unmarshal(text, &c); err != nil {
			return now, fmt.Errorf("flo: the structure of table %d: %w", oid, err)
		}
		s.schema.scope.listed(&c)
		if now.Shapes[oid], err = json.Marshal(&c); err != nil {
			return now, err
		}
	}
	return now, nil
}

// has reports whether a table belongs to the group: it does or did, or it would if it were there at a start.
func (c *schemaScope) has(known knownNames, oid uint32, n decode.Name, above []decode.Name) bool {
	if c.all || known.oids[oid] || known.names[n] || c.schemas[n.Schema] {
		return true
	}
	match := func(list []names.Pattern) bool {
		return slices.ContainsFunc(list, func(p names.Pattern) bool {
			return p.Match(n.Schema, n.Name) || slices.ContainsFunc(above, func(a decode.Name) bool { return p.Match(a.Schema, a.Name) })
		})
	}
	if !c.own {
		return slices.ContainsFunc(above, func(a decode.Name) bool { return known.names[a] })
	}
	return (len(c.include) == 0 || match(c.include)) && !match(c.exclude)
}

// knownNames are the tables that the group has or had, with those above them.
type knownNames struct {
	oids  map[uint32]bool
	names map[decode.Name]bool
}

func (l *lineages) names() knownNames {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := knownNames{make(map[uint32]bool, len(l.known)), make(map[decode.Name]bool, len(l.known))}
	for oid, t := range l.known {
		k.oids[oid] = true
		for _, n := range slices.Concat(t.Names, t.Ancestors) {
			k.names[n] = true
		}
	}
	return k
}

// checkDDL looks whether the event triggers are still whole, and mends them: then the next session, which goes on at
// the same place, has the tables described anew, for as long as it takes.
func (s *replication) checkDDL(ctx context.Context) error {
	if !s.schema.on {
		return nil
	}
	conn, err := s.r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	installed, err := s.r.source.EnsureDDL(ctx, conn, s.r.cfg.group)
	if err != nil {
		return err
	}
	if installed {
		s.warn(ctx, "the event triggers at the source were gone or changed, and were installed again: schema changes meanwhile went unseen")
		s.r.redescribe.Store(true)
		return fmt.Errorf("%w: the source has to describe its tables anew", errAgain)
	}
	return nil
}

// WithDDL replicates schema changes: the source tells of them in the stream, in order with the rows, by event
// triggers that flo installs in schema flo (Drop removes them with the last group of the database), and workers hand them
// to sinks as changes of decode.OpSchema. That takes PostgreSQL 14 and a superuser, or an administrator who runs
// DDLSetupSQL beforehand; otherwise Run ends with ErrPrivilege. No command at the source fails because of them.
//
// A table that is made later, and that WithTables and WithExcludeTables mean, joins the group within seconds. One whose rows
// were written anew by a command (a new column's volatile default, another type) is copied afresh where the sink
// takes copies.
func WithDDL() ReplicatorOption { return func(c *config) { c.ddl = true } }
