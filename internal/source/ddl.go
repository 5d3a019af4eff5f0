package source

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pgsession"
)

// DDLVersion of what ddl.sql installs. It rises with each change of it.
const DDLVersion = 4

// MinDDLVersion is the first whose pgoutput sends logical messages, as server_version_num.
// https://www.postgresql.org/docs/14/protocol-logical-replication.html
const MinDDLVersion = 140000

//go:embed ddl.sql
var ddlSQL string

// ddlSettings pin what the texts of the catalog depend on, and what a name means in functions that run as
// their owner.
const ddlSettings = "SET search_path = pg_catalog, pg_temp SET DateStyle = 'ISO, MDY' SET IntervalStyle = postgres SET TimeZone = 'UTC' " +
	"SET extra_float_digits = 3 SET bytea_output = hex SET lc_monetary = 'C' SET xmloption = content " +
	"SET quote_all_identifiers = off SET standard_conforming_strings = on SET jit = off"

// ddlLock is the advisory lock under which the triggers are installed, and their groups noted.
const ddlLock = "hashtextextended('flo DDL', 0)"

// DDLSetup is the SQL that installs the event triggers, for a superuser, and lets roles use them that replicate.
func DDLSetup(roles ...string) string {
	var grants strings.Builder
	for _, r := range roles {
		fmt.Fprintf(&grants, "GRANT USAGE ON SCHEMA flo TO %[1]s;\nGRANT EXECUTE ON FUNCTION flo.ddl_secret(), flo.ddl_baseline(oid[]), flo.ddl_describe(oid), flo.ddl_use(text, bool) TO %[1]s;\n", names.Quote(r))
	}
	return strings.NewReplacer("{{version}}", strconv.Itoa(DDLVersion), "{{lock}}", "pg_catalog."+ddlLock,
		"{{settings}}", ddlSettings, "{{grants}}", grants.String()).Replace(ddlSQL)
}

// ddlState is what is installed.
type ddlState struct {
	version int  // 0: nothing
	whole   bool // all three triggers are there and enabled
	owned   bool // by this role, or one that it is a member of
	usable  bool // this role may read the secret
}

// ddlTriggers are the names of the event triggers.
const ddlTriggers = "'flo_ddl_command_end', 'flo_sql_drop', 'flo_table_rewrite'"

func readDDL(ctx context.Context, conn *pgx.Conn) (st ddlState, err error) {
	err = conn.QueryRow(ctx, `
		SELECT COALESCE(max(substring(obj_description(e.oid, 'pg_event_trigger') FROM '^flo DDL ([0-9]+)$')::int), 0),
			count(*) FILTER (WHERE e.evtenabled = 'A') = 3, COALESCE(bool_and(pg_has_role(e.evtowner, 'USAGE')), false),
			COALESCE((SELECT has_schema_privilege(n.oid, 'USAGE') AND bool_and(has_function_privilege(p.oid, 'EXECUTE')) AND count(*) = 4
				FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'flo' AND p.proname IN ('ddl_secret', 'ddl_baseline', 'ddl_describe', 'ddl_use') GROUP BY n.oid), false)
		FROM pg_event_trigger e WHERE e.evtname IN (`+ddlTriggers+`)`).Scan(&st.version, &st.whole, &st.owned, &st.usable)
	if err != nil {
		return st, fmt.Errorf("source: reading the event triggers: %w", err)
	}
	return st, nil
}

// EnsureDDL installs the event triggers, if they are missing, not whole, or of an earlier version, and notes that a
// group uses them. It reports whether it has installed them: schema changes before may have
// gone unseen. ErrPrivilege says what an administrator has to do; ErrSource that the server is too old.
func (c Config) EnsureDDL(ctx context.Context, conn *pgx.Conn, group string) (installed bool, err error) {
	if v := pgsession.Version(conn.PgConn()); v < MinDDLVersion {
		return false, fmt.Errorf("source: %w: schema changes need PostgreSQL 14 or later, it is %d: use WithDDLFromRelations", ErrSource, v/10000)
	}
	st, err := readDDL(ctx, conn)
	if err != nil {
		return false, err
	}
	if st.version < DDLVersion || !st.whole {
		// The simple protocol: several statements, with BEGIN and COMMIT of their own.
		if _, err = conn.PgConn().Exec(ctx, DDLSetup()).ReadAll(); err != nil {
			_, rerr := conn.PgConn().Exec(context.WithoutCancel(ctx), "ROLLBACK").ReadAll()
			return false, errors.Join(c.explainDDL(err, st), rerr)
		}
		installed = true
		if st, err = readDDL(ctx, conn); err != nil {
			return installed, err
		}
	}
	if !st.usable {
		return installed, fmt.Errorf("source: %w: the role may not use the event triggers: GRANT USAGE ON SCHEMA flo TO %[2]s; GRANT EXECUTE ON FUNCTION flo.ddl_secret(), flo.ddl_baseline(oid[]), flo.ddl_describe(oid), flo.ddl_use(text, bool) TO %[2]s",
			ErrPrivilege, names.Quote(c.Conn.User))
	}
	if _, err := conn.Exec(ctx, "SELECT flo.ddl_use($1, true)", group); err != nil {
		return installed, fmt.Errorf("source: noting who uses the event triggers: %w", err)
	}
	return installed, nil
}

// explainDDL says what to do where the triggers can't be installed.
func (c Config) explainDDL(err error, st ddlState) error {
	switch pgsession.SQLState(err) {
	case sqlPrivilege:
		what := "to make event triggers, which takes a superuser"
		if st.version > 0 {
			what = fmt.Sprintf("to mend event triggers that are of version %d (%d is needed) or disabled", st.version, DDLVersion)
		}
		return fmt.Errorf("source: %w %s: let an administrator run what DDLSetupSQL(%q) gives, or use WithDDLFromRelations: %w", ErrPrivilege, what, c.Conn.User, err)
	case sqlPrerequisite:
		return fmt.Errorf("source: %w: %w", ErrSource, err)
	}
	return fmt.Errorf("source: installing the event triggers: %w", err)
}

// DropDDL forgets that a group uses the event triggers, and removes them if no other one does. Those that
// belong to another role stay.
func (c Config) DropDDL(ctx context.Context, conn *pgx.Conn, group string) error {
	st, err := readDDL(ctx, conn)
	if err != nil || st.version == 0 || !st.usable {
		return err
	}
	var groups []string
	if err := conn.QueryRow(ctx, "SELECT flo.ddl_use($1, false)", group).Scan(&groups); err != nil {
		return fmt.Errorf("source: noting who uses the event triggers: %w", err)
	}
	if !st.owned || !slices.Equal(groups, []string{group}) {
		return nil
	}
	if _, err := conn.PgConn().Exec(ctx, DDLRemoval).ReadAll(); err != nil {
		return fmt.Errorf("source: removing the event triggers: %w", err)
	}
	return nil
}

// DDLRemoval is the SQL that removes what DDLSetup made. Schema flo goes if nothing else stands in it.
const DDLRemoval = `BEGIN;
SET LOCAL client_min_messages = error;
DROP EVENT TRIGGER IF EXISTS flo_ddl_command_end;
DROP EVENT TRIGGER IF EXISTS flo_sql_drop;
DROP EVENT TRIGGER IF EXISTS flo_table_rewrite;
DROP FUNCTION IF EXISTS flo.ddl_command_end(), flo.ddl_sql_drop(), flo.ddl_table_rewrite(), flo.ddl_baseline(oid[]), flo.ddl_describe(oid), flo.ddl_above(oid[]), flo.ddl_touched(), flo.ddl_failed(text, text),
	flo.ddl_emit_tables(json, oid[], oid[], oid[]), flo.ddl_types(oid[]), flo.ddl_tables(oid[], oid[], oid[]), flo.ddl_indexes(oid), flo.ddl_constraints(oid, oid),
	flo.ddl_columns(oid), flo.ddl_query(text), flo.ddl_emit(json), flo.ddl_secret(), flo.ddl_use(text, bool);
DROP SEQUENCE IF EXISTS flo.ddl_secret_a, flo.ddl_secret_b;
DO $$
BEGIN
	DROP SCHEMA IF EXISTS flo;
EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
	NULL;
END $$;
COMMIT;
`

// Position is how far the server's WAL has come: no less than what has been decoded.
func (c Config) Position(ctx context.Context, conn *pgx.Conn) (decode.LSN, error) {
	var at uint64
	err := conn.QueryRow(ctx, `SELECT ((CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END)
		OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::pg_catalog.int8`).Scan(&at)
	if err != nil {
		return 0, fmt.Errorf("source: reading the WAL's position: %w", err)
	}
	return decode.LSN(at), nil
}

// DDLSecret reads what makes a message genuine: wire.SecretLen hexadecimal digits.
func (c Config) DDLSecret(ctx context.Context, conn *pgx.Conn) (string, error) {
	var secret string
	if err := conn.QueryRow(ctx, "SELECT flo.ddl_secret()").Scan(&secret); err != nil {
		return "", fmt.Errorf("source: reading the event triggers' secret: %w", err)
	}
	return secret, nil
}

// Structure is all that is told of tables at one moment.
type Structure struct {
	Tables  map[uint32]Table           // what is published of each
	Shapes  map[uint32]json.RawMessage // a decode.SchemaChange each, with what it is a partition of
	Altered []uint32                   // those that were altered since, of which nothing else is told
}

// StructureAt gives how published tables stood when a snapshot was exported, and still stand. One that is gone, or that is
// not published, is left out.
//
// Behind the snapshot a row is decoded with the columns of its moment: a table that was altered since has rows on the way that
// don't fit what it is now, and no schema change in between tells of what came before the snapshot.
//
// Within one query the columns are those of its snapshot, and the texts of indexes, constraints and defaults those of the
// newest catalog (ruleutils.c reads most of them from the system caches), as are the columns of a publication: so the
// structure is read again behind it.
func (c Config) StructureAt(ctx context.Context, conn *pgx.Conn, snapshot string, publications []string, oids []uint32) (Structure, error) {
	s, err := c.structureOnce(ctx, conn, snapshot, publications, oids)
	if err != nil && pgsession.SQLState(err) != "" && !pgsession.Transient(err) {
		return c.structureOfEach(ctx, conn, snapshot, publications, oids)
	}
	return s, err
}

func (c Config) structureOnce(ctx context.Context, conn *pgx.Conn, snapshot string, publications []string, oids []uint32) (Structure, error) {
	s := Structure{Tables: map[uint32]Table{}, Shapes: map[uint32]json.RawMessage{}}
	tables, before, err := c.structureAt(ctx, conn, snapshot, publications, oids)
	var now map[uint32]json.RawMessage
	if err == nil {
		now, err = c.shapesNow(ctx, conn, oids)
	}
	if err != nil {
		return s, err
	}
	for _, oid := range oids {
		if !bytes.Equal(before[oid], now[oid]) {
			s.Altered = append(s.Altered, oid)
			continue
		}
		if t, ok := tables[oid]; ok {
			s.Tables[oid] = t
		}
		if now[oid] != nil {
			s.Shapes[oid] = now[oid]
		}
	}
	return s, nil
}

// structureOfEach is StructureAt where the server could not describe a table: parts of it are in the snapshot and not in the
// newest catalog.
func (c Config) structureOfEach(ctx context.Context, conn *pgx.Conn, snapshot string, publications []string, oids []uint32) (Structure, error) {
	all := Structure{Tables: map[uint32]Table{}, Shapes: map[uint32]json.RawMessage{}}
	for _, oid := range oids {
		one, err := c.structureOnce(ctx, conn, snapshot, publications, []uint32{oid})
		switch {
		case err != nil && (pgsession.SQLState(err) == "" || pgsession.Transient(err)):
			return all, err
		case err != nil:
			if _, err := c.shapesNow(ctx, conn, []uint32{oid}); err != nil { // it can't be described as it is now either
				return all, err
			}
			one.Altered = []uint32{oid}
		}
		maps.Copy(all.Tables, one.Tables)
		maps.Copy(all.Shapes, one.Shapes)
		all.Altered = append(all.Altered, one.Altered...)
	}
	return all, nil
}

// structureAt reads what is published and the structures under a snapshot.
func (c Config) structureAt(ctx context.Context, conn *pgx.Conn, snapshot string, publications []string, oids []uint32) (map[uint32]Table, map[uint32]json.RawMessage, error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err == nil {
		defer tx.Rollback(context.WithoutCancel(ctx))
		_, err = tx.Exec(ctx, "SET TRANSACTION SNAPSHOT "+pgsession.Literal(snapshot))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("source: importing the snapshot: %w", err)
	}
	shapes, err := c.shapes(ctx, conn, oids)
	if err != nil {
		return nil, nil, err
	}
	published, err := c.PublishedTables(ctx, conn, publications)
	if err != nil {
		return nil, nil, err
	}
	tables := make(map[uint32]Table, len(published))
	for _, t := range published {
		tables[t.OID] = t
	}
	return tables, shapes, nil
}

// describeTries is how often tables are described until no command is in the way.
const describeTries = 10

// shapesNow is shapes by the newest catalog. A command that commits meanwhile may take away what the query has still seen (an index:
// "cache lookup failed"), which the next one doesn't see.
func (c Config) shapesNow(ctx context.Context, conn *pgx.Conn, oids []uint32) (map[uint32]json.RawMessage, error) {
	backoff := pgsession.Backoff{Base: 20 * time.Millisecond, Cap: 500 * time.Millisecond}
	for {
		shapes, err := c.shapes(ctx, conn, oids)
		if err == nil || pgsession.SQLState(err) == "" || pgsession.Transient(err) || backoff.Attempts() == describeTries {
			return shapes, err
		}
		if err := backoff.Wait(ctx); err != nil {
			return nil, err
		}
	}
}

func (c Config) shapes(ctx context.Context, conn *pgx.Conn, oids []uint32) (map[uint32]json.RawMessage, error) {
	rows, err := conn.Query(ctx, "SELECT c.oid, flo.ddl_describe(c.oid)::text FROM pg_class c WHERE c.oid = ANY ($1)", oids)
	if err != nil {
		return nil, fmt.Errorf("source: describing the tables: %w", err)
	}
	shapes := make(map[uint32]json.RawMessage, len(oids))
	var oid uint32
	var text string
	if _, err := pgx.ForEachRow(rows, []any{&oid, &text}, func() error {
		shapes[oid] = json.RawMessage(text)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("source: describing the tables: %w", err)
	}
	return shapes, nil
}

// baselineSlice is how many tables are locked, for a moment, at a time.
const baselineSlice = 50

// Baseline has the source describe tables in messages whose place in the stream is exact. A table that is locked by
// somebody else is tried again until ctx ends; meanwhile the others are described. Tables that are gone are left out.
func (c Config) Baseline(ctx context.Context, conn *pgx.Conn, oids []uint32) error {
	backoff := pgsession.Backoff{}
	var late []uint32 // one by one
	for part := range slices.Chunk(oids, baselineSlice) {
		switch err := baseline(ctx, conn, part); {
		case err == nil:
		case lockedOut(err):
			late = append(late, part...)
		default:
			return fmt.Errorf("source: describing the tables: %w", err)
		}
	}
	for len(late) > 0 {
		var again []uint32
		for _, oid := range late {
			switch err := baseline(ctx, conn, []uint32{oid}); {
			case err == nil:
			case lockedOut(err):
				again = append(again, oid)
			default:
				return fmt.Errorf("source: describing the tables: %w", err)
			}
		}
		if late = again; len(late) > 0 {
			if err := backoff.Wait(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func baseline(ctx context.Context, conn *pgx.Conn, oids []uint32) error {
	bound, cancel := context.WithTimeout(ctx, baselineBound)
	defer cancel()
	_, err := conn.Exec(bound, "SELECT flo.ddl_baseline($1)", oids)
	return err
}

// baselineBound is far above the lock's timeout of 2 s, for each of baselineSlice tables.
const baselineBound = 5 * time.Minute

// lockedOut reports whether a table was locked, dropped or renamed meanwhile.
func lockedOut(err error) bool {
	switch pgsession.SQLState(err) {
	case "55P03", "40P01", "42P01", "3F000": // lock_not_available, deadlock_detected, undefined_table, invalid_schema_name
		return true
	}
	return false
}

// PublishedScope tells of publications whether one is FOR ALL TABLES, and the schemas of which they publish all tables:
// tables that are made later are in them from the beginning.
func PublishedScope(ctx context.Context, conn *pgx.Conn, publications []string) (all bool, schemas []string, err error) {
	err = conn.QueryRow(ctx, "SELECT COALESCE(bool_or(puballtables), false) FROM pg_publication WHERE pubname = ANY ($1)", publications).Scan(&all)
	if err == nil && pgsession.Version(conn.PgConn()) >= 150000 {
		err = conn.QueryRow(ctx, `SELECT COALESCE(array_agg(n.nspname::text), '{}') FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid
			JOIN pg_namespace n ON n.oid = s.pnnspid WHERE p.pubname = ANY ($1)`, publications).Scan(&schemas)
	}
	if err != nil {
		return false, nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	return all, schemas, nil
}

// ColumnLists gives the columns (attnum) that publications limit tables to, by the table's OID.
func ColumnLists(ctx context.Context, conn *pgx.Conn, publications []string) (map[uint32][]int16, error) {
	lists := map[uint32][]int16{}
	if pgsession.Version(conn.PgConn()) < 150000 {
		return lists, nil
	}
	rows, err := conn.Query(ctx, `SELECT r.prrelid, r.prattrs::int2[] FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
		WHERE p.pubname = ANY ($1) AND r.prattrs IS NOT NULL`, publications)
	if err != nil {
		return nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	var oid uint32
	var list []int16
	if _, err := pgx.ForEachRow(rows, []any{&oid, &list}, func() error {
		lists[oid] = slices.Clone(list)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	return lists, nil
}
