-- What flo installs at the source for WithDDL: event triggers that write a logical message for each schema change.
-- Version {{version}}. It may be run again; it is one transaction.
BEGIN;
SET LOCAL client_min_messages = error;
SELECT pg_catalog.pg_advisory_xact_lock({{lock}});

DO $flo$
DECLARE
	installed int;
	owner name;
	super bool;
BEGIN
	SELECT max(substring(obj_description(e.oid, 'pg_event_trigger') FROM '^flo DDL ([0-9]+)$')::int) INTO installed
		FROM pg_catalog.pg_event_trigger e WHERE e.evtname = 'flo_ddl_command_end';
	IF installed > {{version}} THEN
		RAISE EXCEPTION 'version % of flo''s event triggers is installed, which is later than {{version}}', installed USING ERRCODE = 'object_not_in_prerequisite_state';
	END IF;
	-- The functions run as their owner: whoever owns the schema could put others in their place.
	SELECT r.rolname, r.rolsuper OR r.rolname = current_user INTO owner, super FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'flo';
	IF NOT super THEN
		RAISE EXCEPTION 'schema flo belongs to %, who is no superuser: ALTER SCHEMA flo OWNER TO %', owner, quote_ident(current_user) USING ERRCODE = 'object_not_in_prerequisite_state';
	END IF;
	IF owner IS NULL THEN
		CREATE SCHEMA flo;
	END IF;
	-- The secret stands in sequences, not in a table's row: FOR ALL TABLES would publish that.
	IF to_regclass('flo.ddl_secret_a') IS NULL OR to_regclass('flo.ddl_secret_b') IS NULL THEN
		DROP SEQUENCE IF EXISTS flo.ddl_secret_a, flo.ddl_secret_b;
		CREATE SEQUENCE flo.ddl_secret_a MINVALUE -9223372036854775807;
		CREATE SEQUENCE flo.ddl_secret_b MINVALUE -9223372036854775807;
		REVOKE ALL ON SEQUENCE flo.ddl_secret_a, flo.ddl_secret_b FROM PUBLIC;
		PERFORM setval(s, greatest(('x' || left(encode(sha256(decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex')), 'hex'), 16))::bit(64)::int8, -9223372036854775807))
			FROM unnest(ARRAY['flo.ddl_secret_a', 'flo.ddl_secret_b']::regclass[]) s;
	END IF;
END $flo$;

CREATE OR REPLACE FUNCTION flo.ddl_secret() RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $flo$
	SELECT lpad(to_hex(a.last_value), 16, '0') || lpad(to_hex(b.last_value), 16, '0') FROM flo.ddl_secret_a a, flo.ddl_secret_b b
$flo$;

-- A message counts, when decoded, for the end of its record (logicalmsg_decode in src/backend/replication/logical/decode.c), a row
-- for the beginning of its own: with nothing between them, and one of them in a subtransaction, either may come first.
-- So a second record follows, which nobody reads.
CREATE OR REPLACE FUNCTION flo.ddl_emit(change json) RETURNS void LANGUAGE plpgsql AS $flo$
BEGIN
	PERFORM pg_logical_emit_message(true, 'flo', convert_to(flo.ddl_secret() || json_strip_nulls(change)::text, 'UTF8'));
	PERFORM pg_logical_emit_message(true, 'flo.behind', '');
END $flo$;

-- The client's text, if it is this command and nothing else: other statements may hold anything.
CREATE OR REPLACE FUNCTION flo.ddl_query(tag text) RETURNS text LANGUAGE sql AS $flo$
	SELECT left(q, 65536) FROM (SELECT regexp_replace(current_query(), '^(\s+|--[^\n]*\n|/\*([^*]|\*+[^*/])*\*+/)+', '') AS q) t
	WHERE lower(left(q, length(split_part(tag, ' ', 1)))) = lower(split_part(tag, ' ', 1)) AND q !~ ';\s*\S' AND octet_length(left(q, 65536)) <= 65536
$flo$;

CREATE OR REPLACE FUNCTION flo.ddl_columns(class oid) RETURNS json LANGUAGE sql AS $flo$
	SELECT json_agg(json_build_object('num', a.attnum, 'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
		'collation', (SELECT json_build_object('schema', n.nspname, 'name', l.collname) FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace
			WHERE l.oid = a.attcollation AND a.attcollation <> t.typcollation),
		'not_null', a.attnotnull, 'default', pg_get_expr(d.adbin, d.adrelid),
		'identity', nullif(a.attidentity::text, ''), 'generated', nullif(a.attgenerated::text, ''),
		'missing', CASE WHEN a.atthasmissing THEN array_to_string(a.attmissingval, '') END,
		'comment', col_description(a.attrelid, a.attnum), 'local', a.attislocal) ORDER BY a.attnum)
	FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
	WHERE a.attrelid = class AND a.attnum > 0 AND NOT a.attisdropped
$flo$;

CREATE OR REPLACE FUNCTION flo.ddl_constraints(class oid, domain oid) RETURNS json LANGUAGE sql AS $flo$
	SELECT json_agg(json_build_object('oid', k.oid::int8, 'name', k.conname, 'kind', k.contype, 'definition', pg_get_constraintdef(k.oid),
		'columns', k.conkey, 'comment', obj_description(k.oid, 'pg_constraint'), 'local', k.conislocal) ORDER BY k.oid)
	FROM pg_constraint k WHERE k.contype IN ('p', 'u', 'f', 'c', 'x', 'n') AND (class <> 0 AND k.conrelid = class OR domain <> 0 AND k.contypid = domain)
$flo$;

CREATE OR REPLACE FUNCTION flo.ddl_indexes(class oid) RETURNS json LANGUAGE sql AS $flo$
	SELECT json_agg(json_build_object('oid', i.oid::int8, 'name', i.relname, 'definition', pg_get_indexdef(i.oid), 'valid', x.indisvalid,
		'columns', (SELECT json_agg(DISTINCT d.refobjsubid) FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.oid
			AND d.refclassid = 'pg_class'::regclass AND d.refobjid = class AND d.refobjsubid > 0),
		'comment', obj_description(i.oid, 'pg_class'),
		'parent', (SELECT json_build_object('schema', n.nspname, 'name', p.relname) FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
			JOIN pg_namespace n ON n.oid = p.relnamespace WHERE h.inhrelid = i.oid)) ORDER BY i.oid)
	FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
	WHERE x.indrelid = class AND x.indislive AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.oid AND k.contype IN ('p', 'u', 'x'))
$flo$;

CREATE OR REPLACE FUNCTION flo.ddl_tables(classes oid[], made oid[], rewritten oid[]) RETURNS json LANGUAGE sql AS $flo$
	SELECT json_agg(json_build_object('oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname,
		'made', c.oid = ANY (made), 'rewritten', c.oid = ANY (rewritten),
		'kind', c.relkind, 'persistence', c.relpersistence, 'identity', c.relreplident,
		'identity_index', (SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = c.oid AND x.indisreplident AND c.relreplident = 'i'),
		'partition_key', CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
		'bound', pg_get_expr(c.relpartbound, c.oid),
		'parents', (SELECT json_agg(json_build_object('schema', pn.nspname, 'name', p.relname) ORDER BY h.inhseqno)
			FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE h.inhrelid = c.oid),
		'ancestors', CASE WHEN c.relispartition THEN (
			WITH RECURSIVE up (relid, depth) AS (
				SELECT h.inhparent, 1 FROM pg_inherits h WHERE h.inhrelid = c.oid
				UNION ALL
				SELECT h.inhparent, u.depth + 1 FROM up u JOIN pg_class k ON k.oid = u.relid AND k.relispartition JOIN pg_inherits h ON h.inhrelid = u.relid)
			SELECT json_agg(json_build_object('schema', pn.nspname, 'name', p.relname) ORDER BY u.depth)
				FROM up u JOIN pg_class p ON p.oid = u.relid JOIN pg_namespace pn ON pn.oid = p.relnamespace) END,
		'comment', obj_description(c.oid, 'pg_class'), 'options', c.reloptions,
		'columns', coalesce(flo.ddl_columns(c.oid), '[]'), 'constraints', flo.ddl_constraints(c.oid, 0), 'indexes', flo.ddl_indexes(c.oid))
		ORDER BY c.oid)
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY (classes)
$flo$;

-- The types that tables use, those below them included.
CREATE OR REPLACE FUNCTION flo.ddl_types(classes oid[]) RETURNS json LANGUAGE sql AS $flo$
	WITH RECURSIVE used (oid) AS (
		SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = ANY (classes) AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
		UNION
		SELECT b.oid FROM used u JOIN pg_type t ON t.oid = u.oid CROSS JOIN LATERAL (
			SELECT t.typelem WHERE t.typelem <> 0
			UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
			UNION ALL SELECT unnest(ARRAY[r.rngtypid, r.rngsubtype]) FROM pg_range r WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid
			UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
		) b (oid) WHERE b.oid >= 16384
	)
	SELECT json_agg(json_build_object('oid', t.oid::int8, 'schema', n.nspname, 'name', t.typname, 'kind', t.typtype,
		'labels', (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
		'fields', CASE WHEN t.typtype = 'c' THEN flo.ddl_columns(t.typrelid) END,
		'base', CASE t.typtype WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod) WHEN 'r' THEN (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid) END,
		'collation', (SELECT json_build_object('schema', ln.nspname, 'name', l.collname)
			FROM (SELECT t.typbasetype, t.typcollation WHERE t.typtype = 'd' UNION ALL SELECT r.rngsubtype, r.rngcollation FROM pg_range r WHERE r.rngtypid = t.oid AND t.typtype = 'r') u (base, coll)
			JOIN pg_type b ON b.oid = u.base AND b.typcollation <> u.coll JOIN pg_collation l ON l.oid = u.coll JOIN pg_namespace ln ON ln.oid = l.collnamespace),
		'not_null', t.typnotnull, 'default', CASE WHEN t.typtype = 'd' THEN t.typdefault END,
		'constraints', CASE WHEN t.typtype = 'd' THEN flo.ddl_constraints(0, t.oid) END,
		'comment', obj_description(t.oid, 'pg_type')) ORDER BY t.oid)
	FROM used u JOIN pg_type t ON t.oid = u.oid JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
	WHERE t.typtype IN ('e', 'c', 'd', 'r') AND (t.typtype <> 'c' OR c.relkind = 'c')
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
$flo$;

-- The tables among them that may be replicated, in slices that a message holds.
CREATE OR REPLACE FUNCTION flo.ddl_emit_tables(head json, classes oid[], made oid[], rewritten oid[]) RETURNS int LANGUAGE plpgsql AS $flo$
DECLARE
	slice CONSTANT int := 200;
	part oid[];
	n int := 0;
BEGIN
	SELECT array_agg(DISTINCT c.oid) INTO classes FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
		WHERE c.oid = ANY (classes) AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.oid >= 16384
			AND s.nspname NOT IN ('flo', 'pg_catalog', 'information_schema', 'pg_toast');
	FOR i IN 1 .. coalesce(array_length(classes, 1), 0) BY slice LOOP
		part := classes[i : i + slice - 1];
		PERFORM flo.ddl_emit((SELECT json_object_agg(k, v) FROM (SELECT key, value FROM json_each(head) UNION ALL
			VALUES ('tables', flo.ddl_tables(part, made, rewritten)), ('types', flo.ddl_types(part))) f (k, v) WHERE v IS NOT NULL));
		n := n + 1;
	END LOOP;
	RETURN n;
END $flo$;

CREATE OR REPLACE FUNCTION flo.ddl_failed(tag text, reason text) RETURNS void LANGUAGE sql AS $flo$
	SELECT flo.ddl_emit(json_build_object('tag', tag, 'failed', left(reason, 1000)))
$flo$;

-- The tables that a command was about, and those made, in one row.
CREATE OR REPLACE FUNCTION flo.ddl_touched(OUT tables oid[], OUT made oid[], OUT schemas text[]) LANGUAGE sql AS $flo$
	WITH RECURSIVE cmd AS MATERIALIZED (
		SELECT c.classid, c.objid, c.command_tag AS tag FROM pg_event_trigger_ddl_commands() c
		WHERE NOT c.in_extension AND c.classid IS NOT NULL AND coalesce(c.schema_name, '') <> 'pg_temp'
	), type (kind, oid, tag) AS ( -- the types, what is made of them, and at last the tables
		SELECT t.* FROM (
			SELECT 'pg_type'::regclass, c.objid, c.tag FROM cmd c WHERE c.classid = 'pg_type'::regclass AND c.tag NOT LIKE 'CREATE%'
			UNION ALL SELECT 'pg_class'::regclass, k.oid, c.tag FROM cmd c JOIN pg_class k ON c.classid = 'pg_class'::regclass AND k.oid = c.objid AND k.relkind = 'c' WHERE c.tag NOT LIKE 'CREATE%'
			UNION ALL SELECT 'pg_type'::regclass, y.oid, c.tag FROM cmd c JOIN pg_type y ON c.classid = 'pg_namespace'::regclass AND y.typnamespace = c.objid AND y.typtype IN ('e', 'c', 'd', 'r') WHERE c.tag = 'ALTER SCHEMA'
			UNION ALL SELECT 'pg_type'::regclass, k.contypid, c.tag FROM cmd c JOIN pg_constraint k ON c.classid = 'pg_constraint'::regclass AND k.oid = c.objid AND k.contypid <> 0
		) t (kind, oid, tag)
		UNION
		SELECT n.kind, n.oid, u.tag FROM type u LEFT JOIN pg_class k ON u.kind = 'pg_class'::regclass AND k.oid = u.oid CROSS JOIN LATERAL (
			SELECT d.classid::regclass, d.objid FROM pg_depend d WHERE d.refclassid = u.kind AND d.refobjid = u.oid AND d.classid IN ('pg_type'::regclass, 'pg_class'::regclass)
			UNION ALL SELECT 'pg_type'::regclass, k.reltype WHERE k.relkind = 'c'
		) n (kind, oid) WHERE k.oid IS NULL OR k.relkind = 'c'
	), named (oid, made, tag) AS (
		SELECT CASE WHEN k.relkind IN ('i', 'I') THEN (SELECT x.indrelid FROM pg_index x WHERE x.indexrelid = k.oid) ELSE k.oid END,
				c.tag IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO') AND k.relkind IN ('r', 'p'), c.tag
			FROM cmd c JOIN pg_class k ON c.classid = 'pg_class'::regclass AND k.oid = c.objid WHERE k.relkind IN ('r', 'p', 'i', 'I')
		UNION ALL SELECT k.conrelid, false, c.tag FROM cmd c JOIN pg_constraint k ON c.classid = 'pg_constraint'::regclass AND k.oid = c.objid AND k.conrelid <> 0
		UNION ALL SELECT k.oid, false, c.tag FROM cmd c JOIN pg_class k ON c.classid = 'pg_namespace'::regclass AND k.relnamespace = c.objid AND c.tag = 'ALTER SCHEMA'
		UNION ALL SELECT u.oid, false, u.tag FROM type u WHERE u.kind = 'pg_class'::regclass
	), tree (oid, tag) AS ( -- with what inherits from them
		SELECT n.oid, n.tag FROM named n
		UNION
		SELECT h.inhrelid, t.tag FROM tree t JOIN pg_inherits h ON h.inhparent = t.oid WHERE t.tag IN ('ALTER TABLE', 'CREATE INDEX', 'ALTER INDEX')
	), detached (oid) AS ( -- a command's row names only the partitioned table, but the row of the partition is of this transaction
		SELECT k.oid FROM pg_class k WHERE NOT k.relispartition AND k.relkind IN ('r', 'p') AND age(k.xmin) <= age(pg_current_xact_id()::xid)
			AND EXISTS (SELECT FROM named n JOIN pg_class p ON p.oid = n.oid AND p.relkind = 'p' WHERE n.tag = 'ALTER TABLE')
	)
	SELECT (SELECT array_agg(DISTINCT t.oid) FROM (SELECT oid FROM tree UNION ALL SELECT oid FROM detached) t),
		(SELECT array_agg(DISTINCT n.oid) FROM named n WHERE n.made),
		(SELECT array_agg(DISTINCT s.nspname::text) FROM cmd c JOIN pg_namespace s ON c.classid = 'pg_namespace'::regclass AND s.oid = c.objid
			WHERE c.tag IN ('CREATE SCHEMA', 'ALTER SCHEMA') AND s.nspname <> 'flo' AND s.nspname !~ '^pg_')
$flo$;

CREATE OR REPLACE FUNCTION flo.ddl_command_end() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER {{settings}} AS $flo$
DECLARE
	t record;
	head json;
BEGIN
	SELECT * INTO t FROM flo.ddl_touched();
	head := json_build_object('tag', TG_TAG, 'query', flo.ddl_query(TG_TAG), 'schemas', t.schemas);
	IF flo.ddl_emit_tables(head, t.tables, coalesce(t.made, '{}'), '{}') = 0 AND t.schemas IS NOT NULL THEN
		PERFORM flo.ddl_emit(head);
	END IF;
EXCEPTION WHEN OTHERS THEN
	BEGIN
		PERFORM flo.ddl_failed(TG_TAG, SQLSTATE || ': ' || SQLERRM);
	EXCEPTION WHEN OTHERS THEN
		NULL; -- the command counts for more than its trace
	END;
END $flo$;

CREATE OR REPLACE FUNCTION flo.ddl_sql_drop() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER {{settings}} AS $flo$
DECLARE
	gone json;
BEGIN
	SELECT json_agg(json_build_object('kind', d.object_type, 'oid', d.objid::int8, 'num', nullif(d.objsubid, 0), 'schema', d.schema_name,
			'name', coalesce(d.object_name, d.address_names[array_upper(d.address_names, 1)]), 'address', d.address_names,
			'original', d.original, 'normal', d.normal) ORDER BY d.n) INTO gone
		FROM pg_event_trigger_dropped_objects() WITH ORDINALITY AS d (classid, objid, objsubid, original, normal, is_temporary, object_type,
			schema_name, object_name, object_identity, address_names, address_args, n)
		WHERE NOT d.is_temporary AND coalesce(d.schema_name, d.object_name, d.address_names[1]) NOT IN ('flo', 'pg_catalog', 'information_schema', 'pg_toast')
			AND coalesce(d.schema_name, d.object_name, d.address_names[1]) !~ '^pg_(toast_)?temp' -- of a default PostgreSQL 14 gives the address alone
			AND (d.object_type IN ('table', 'table column', 'index', 'table constraint', 'domain constraint', 'composite type column', 'default value', 'schema')
				OR d.object_type = 'type' AND (d.original OR d.normal) AND TG_TAG NOT LIKE '%EXTENSION');
	IF gone IS NOT NULL THEN
		PERFORM flo.ddl_emit(json_build_object('tag', TG_TAG, 'query', flo.ddl_query(TG_TAG), 'dropped', gone));
	END IF;
EXCEPTION WHEN OTHERS THEN
	BEGIN
		PERFORM flo.ddl_failed(TG_TAG, SQLSTATE || ': ' || SQLERRM);
	EXCEPTION WHEN OTHERS THEN
		NULL; -- the command counts for more than its trace
	END;
END $flo$;

-- Before the rows are written anew, and with the structure of behind it. Reasons: 1 SET LOGGED or UNLOGGED, 2 a default's
-- value, 4 a column's, 8 the access method (AT_REWRITE_… in src/include/commands/event_trigger.h).
CREATE OR REPLACE FUNCTION flo.ddl_table_rewrite() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER {{settings}} AS $flo$
DECLARE
	class CONSTANT oid := pg_event_trigger_table_rewrite_oid();
	reason CONSTANT int := pg_event_trigger_table_rewrite_reason();
BEGIN
	IF reason & 6 <> 0 OR reason & 1 <> 0 AND (SELECT c.relpersistence = 'u' FROM pg_class c WHERE c.oid = class) THEN
		PERFORM flo.ddl_emit_tables(json_build_object('tag', TG_TAG, 'query', flo.ddl_query(TG_TAG)), ARRAY[class], '{}', ARRAY[class]);
	END IF;
EXCEPTION WHEN OTHERS THEN
	BEGIN
		PERFORM flo.ddl_failed(TG_TAG, SQLSTATE || ': ' || SQLERRM);
	EXCEPTION WHEN OTHERS THEN
		NULL; -- the command counts for more than its trace
	END;
END $flo$;

-- How a table stands, with those that it is a partition of.
CREATE OR REPLACE FUNCTION flo.ddl_above(classes oid[]) RETURNS oid[] LANGUAGE sql AS $flo$
	WITH RECURSIVE up (oid) AS (
		SELECT c.oid FROM pg_class c WHERE c.oid = ANY (classes)
		UNION
		SELECT h.inhparent FROM up u JOIN pg_class c ON c.oid = u.oid AND c.relispartition JOIN pg_inherits h ON h.inhrelid = u.oid
	)
	SELECT array_agg(oid ORDER BY oid) FROM up
$flo$;

CREATE OR REPLACE FUNCTION flo.ddl_describe(class oid) RETURNS json LANGUAGE plpgsql SECURITY DEFINER {{settings}} AS $flo$
DECLARE
	classes CONSTANT oid[] := flo.ddl_above(ARRAY[class]);
BEGIN
	RETURN json_strip_nulls(json_build_object('tag', '', 'baseline', true, 'tables', flo.ddl_tables(classes, '{}', '{}'), 'types', flo.ddl_types(classes)));
END $flo$;

-- How tables stand, behind locks that hold off whoever alters one: a message has its place at the commit. Waits up to 2 s.
CREATE OR REPLACE FUNCTION flo.ddl_baseline(classes oid[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER {{settings}} SET lock_timeout = '2s' AS $flo$
DECLARE
	class regclass;
BEGIN
	classes := flo.ddl_above(classes);
	FOR class IN SELECT c.oid::regclass FROM pg_class c WHERE c.oid = ANY (classes) ORDER BY c.oid LOOP
		EXECUTE format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', class);
	END LOOP;
	PERFORM flo.ddl_emit_tables(json_build_object('tag', '', 'baseline', true), classes, '{}', '{}');
END $flo$;

-- Notes that a group uses the triggers, or no longer does, and gives the groups that were noted before. They stand in
-- a comment: FOR ALL TABLES would publish a table's rows.
CREATE OR REPLACE FUNCTION flo.ddl_use(name text, used bool) RETURNS text[] LANGUAGE plpgsql SECURITY DEFINER {{settings}} AS $flo$
DECLARE
	head CONSTANT text := 'flo groups:';
	before text[];
BEGIN
	PERFORM pg_advisory_xact_lock({{lock}});
	before := coalesce((SELECT array_agg(g) FROM unnest(string_to_array(substr(obj_description('flo.ddl_command_end()'::regprocedure, 'pg_proc'), length(head) + 2), ' ')) g WHERE g <> ''), '{}');
	IF used <> (name = ANY (before)) THEN
		EXECUTE format('COMMENT ON FUNCTION flo.ddl_command_end() IS %L',
			head || ' ' || array_to_string(CASE WHEN used THEN before || name ELSE array_remove(before, name) END, ' '));
	END IF;
	RETURN before;
END $flo$;

REVOKE ALL ON FUNCTION flo.ddl_secret(), flo.ddl_use(text, bool), flo.ddl_emit(json), flo.ddl_query(text), flo.ddl_columns(oid), flo.ddl_constraints(oid, oid), flo.ddl_indexes(oid),
	flo.ddl_tables(oid[], oid[], oid[]), flo.ddl_types(oid[]), flo.ddl_emit_tables(json, oid[], oid[], oid[]), flo.ddl_failed(text, text), flo.ddl_touched(),
	flo.ddl_command_end(), flo.ddl_sql_drop(), flo.ddl_table_rewrite(), flo.ddl_baseline(oid[]),
	flo.ddl_above(oid[]), flo.ddl_describe(oid) FROM PUBLIC;

DROP EVENT TRIGGER IF EXISTS flo_ddl_command_end;
DROP EVENT TRIGGER IF EXISTS flo_sql_drop;
DROP EVENT TRIGGER IF EXISTS flo_table_rewrite;
CREATE EVENT TRIGGER flo_ddl_command_end ON ddl_command_end EXECUTE FUNCTION flo.ddl_command_end();
CREATE EVENT TRIGGER flo_sql_drop ON sql_drop EXECUTE FUNCTION flo.ddl_sql_drop();
CREATE EVENT TRIGGER flo_table_rewrite ON table_rewrite EXECUTE FUNCTION flo.ddl_table_rewrite();
ALTER EVENT TRIGGER flo_ddl_command_end ENABLE ALWAYS;
ALTER EVENT TRIGGER flo_sql_drop ENABLE ALWAYS;
ALTER EVENT TRIGGER flo_table_rewrite ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER flo_ddl_command_end IS 'flo DDL {{version}}';
{{grants}}COMMIT;
