package source

import (
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
)

// Table is a table that can be published and copied: an ordinary table or a leaf partition.
type Table struct {
	OID    uint32
	Schema string
	Name   string
	Kind   byte // pg_class.relkind: 'r'
	// Identity is the replica identity as it is set; HasIdentity says whether updates and deletes can be
	// published by it (IdentityDefault without a primary key can't).
	Identity    decode.Identity
	HasIdentity bool
	// Columns in order, as pgoutput will describe them: without dropped and generated ones, and within
	// the publication's column list. Key is set by the replica identity. The types have OID, Schema,
	// Name and Kind only; Describe has the rest.
	Columns []decode.Column
	// Pages is the real size in blocks of the main fork (pg_relation_size, not the stale relpages).
	Pages int64
	// Ancestors of a leaf partition: parent first, root last.
	Ancestors []decode.Name
	// RowFilter of the publication, an SQL expression; "": all rows.
	RowFilter string
	// FileNode is pg_class.relfilenode; a rewrite or TRUNCATE changes it.
	FileNode uint32
}

// Qualified gives the table's name.
func (t *Table) Qualified() decode.Name { return decode.Name{Schema: t.Schema, Name: t.Name} }

// quoted gives the table's name in SQL.
func (t *Table) quoted() string { return names.Qualified(t.Schema, t.Name) }
