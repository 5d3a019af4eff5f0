package rules

import (
	"io"

	"github.com/pgflo/flo/decode"
)

// LoadRoutes reads routes from YAML, in the field names that pg_flo documents:
//
//	users:                             # a name for people
//	  source_table: users              # or shop.users, shop.*, tenant_(.*)
//	  destination_table: customers     # or crm.customers, archive.*, all.$1; default: the source's
//	  column_mappings:
//	    - {source: id, destination: customer_id}
//	  operations: [INSERT, UPDATE]     # others are dropped; default: INSERT, UPDATE, DELETE
//
// Names and patterns are those of Route; a source table without a schema is sought in every one, and is
// an error (ErrAmbiguous) once two schemas have it. A TRUNCATE is left out, as pg_flo leaves out all of
// them, unless it is among the operations. Errors are as Load's. The result goes into the same list as the rules.
func LoadRoutes(r io.Reader) ([]Rule, error) {
	f := &file{}
	doc := f.open(r)
	if doc == nil {
		return nil, f.err()
	}
	var all []Rule
	for _, e := range f.mapping(doc, "the file") {
		f.table = e.name
		if r := f.route(e); r != nil {
			all = append(all, r)
		}
		f.table, f.column = "", ""
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if err := Validate(all...); err != nil {
		return nil, err
	}
	return all, nil
}

func (f *file) route(e entry) Rule {
	before := len(f.errs)
	p := f.fields(e.value, "route", "source_table", "destination_table", "column_mappings", "operations")
	if len(f.errs) > before {
		return nil
	}
	if p["source_table"] == nil {
		f.fail(e.key, "route: no source_table")
		return nil
	}
	r := &routeRule{anySchema: true, to: "*", where: (&LoadError{File: f.name, Line: e.key.Line}).place() + ": table " + e.name}
	r.from, _ = f.text(p["source_table"], "source_table")
	if n := p["destination_table"]; n != nil {
		r.to, _ = f.text(n, "destination_table")
	}
	ops := []decode.Op{decode.OpInsert, decode.OpUpdate, decode.OpDelete}
	if n := p["operations"]; n != nil {
		ops = f.operations(n)
	}
	Only(ops...).route(r)
	if n := p["column_mappings"]; n != nil {
		for _, item := range f.list(n, "column_mappings") {
			f.column = ""
			m := f.fields(item, "column_mappings", "source", "destination")
			if m["source"] == nil || m["destination"] == nil {
				f.fail(item, "column_mappings: each has a source and a destination")
				continue
			}
			source, _ := f.text(m["source"], "source")
			f.column = source
			destination, _ := f.text(m["destination"], "destination")
			RenameColumn(source, destination).route(r)
		}
	}
	f.column = ""
	if r.err = r.parse(); r.err != nil && len(f.errs) == before {
		f.fail(p["source_table"], "%w", r.err)
	}
	if len(f.errs) > before {
		return nil
	}
	return r
}
