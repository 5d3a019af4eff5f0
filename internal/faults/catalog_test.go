//go:build unix

package faults

// catalogs describe tables, columns, indexes and constraints, one text a thing. Column order may differ.
var catalogs = map[string]string{
	"table": `SELECT concat_ws(' ', c.oid::regclass, c.relkind, pg_get_expr(c.relpartbound, c.oid)) FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')`,
	"column": `SELECT concat_ws(' ', c.oid::regclass || '.' || quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid))
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE a.attnum > 0 AND NOT a.attisdropped`,
	"index": `SELECT concat_ws(' ', pg_get_indexdef(x.indexrelid), x.indisprimary, x.indisvalid) FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')`,
	"constraint": `SELECT concat_ws(' ', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid), k.convalidated) FROM pg_constraint k
		JOIN pg_namespace n ON n.oid = k.connamespace WHERE k.conrelid <> 0 AND k.contype <> 't'`,
}

// sameCatalog compares the tables themselves.
func (r *randomRun) sameCatalog(worker, url string) {
	r.t.Helper()
	read := func(url, sql string) map[string]bool {
		all := map[string]bool{}
		sql += ` AND n.nspname NOT IN ('flo', 'information_schema') AND n.nspname !~ '^pg_'`
		for _, text := range value[[]string](r.rig, url, `SELECT coalesce(array_agg(text), '{}') FROM (`+sql+`) t (text)`) {
			all[text] = true
		}
		return all
	}
	for what, sql := range catalogs {
		here, there := read(r.source, sql), read(url, sql)
		for text := range here {
			if !there[text] {
				r.t.Errorf("worker %s: the destination lacks %s %s", worker, what, text)
			}
		}
		for text := range there {
			if !here[text] {
				r.t.Errorf("worker %s: the source lacks %s %s", worker, what, text)
			}
		}
	}
}
