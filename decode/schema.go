package decode

// SchemaChange is what one DDL command did to the group's tables and types, in order with the rows: what
// comes before it in the stream has the old structure, what comes behind it has the new one.
//
// It carries the structure that the command left behind, never only its text, which must not be run again.
// One command may be several of these, in this order: what it dropped; tables that it wrote anew
// (Rewritten); tables as it left them, 200 at a time.
type SchemaChange struct {
	Tag string `json:"tag"` // the command's tag, for example "ALTER TABLE"; "" for a baseline
	// Query is what the client sent, cut at 64 KiB; "" if that held other statements too, or was not the
	// command itself (a function's call, a baseline), or a rule of the worker hides data.
	Query string `json:"query,omitempty"`
	// Baseline: no command was run. Tables are as they stand at this place of the stream, for whoever
	// keeps books of structures and has none of them yet.
	Baseline bool `json:"baseline,omitempty"`
	// Observed: no command was seen, for want of event triggers. Tables are as PostgreSQL described them to a
	// row that follows: name, replica identity and columns, these with Name and Type only (Num is 0). A renamed
	// column looks like one that was dropped and another that was added; sink/postgres, which would lose the old one's
	// values, leaves it to you (ErrDDL) where both have the same type.
	Observed bool `json:"observed,omitempty"`
	// Tables are those that the command made or altered, as it left them.
	Tables []TableShape `json:"tables,omitempty"`
	// Detached is the worker's: of a table that is left out of Tables, since a fresh copy will bring it, only that it is no part of
	// another one any more, by its OID. Partitions that come in its place then find it free.
	Detached []uint32 `json:"-"`
	// Types are the enum, composite, domain and range types that Tables use, as they stand; those of extensions
	// left out. A type that no table uses is in no schema change; where one is altered, Tables are those that use it.
	Types []TypeShape `json:"types,omitempty"`
	// Schemas that it made.
	Schemas []string `json:"schemas,omitempty"`
	// Dropped objects, dependent ones included, in the order of sql_drop.
	Dropped []Dropped `json:"dropped,omitempty"`
	// Failed says why the structure could not be told: the command was run all the same. What the stream
	// holds behind it may not fit the destination.
	Failed string `json:"failed,omitempty"`
}

// TableShape is a table's structure.
type TableShape struct {
	OID    uint32 `json:"oid"`
	Schema string `json:"schema"`
	Name   string `json:"name"`
	// Source is the table's name at the source, where rules route it elsewhere. The texts of definitions
	// and expressions keep the source's names, of columns too. LeftOut are source columns that rules leave
	// out: they aren't in Columns.
	Source  *Name    `json:"source,omitempty"`
	LeftOut []string `json:"left_out,omitempty"`
	// Made: the command created the table. Rewritten: its rows were written anew, so that values may differ
	// from those that were sent before, with nothing in the stream that says so.
	Made      bool `json:"made,omitempty"`
	Rewritten bool `json:"rewritten,omitempty"`
	// CopyFollows is the worker's: a fresh copy will bring the rows of a Rewritten table, and until then its changes are left out.
	CopyFollows bool `json:"-"`
	// Kind is pg_class.relkind: "r" a table, "p" a partitioned one.
	Kind string `json:"kind"`
	// Persistence is pg_class.relpersistence: "p", or "u" for an unlogged table.
	Persistence string `json:"persistence"`
	// Identity is pg_class.relreplident, IdentityIndex the index of 'i'.
	Identity      string `json:"identity"`
	IdentityIndex string `json:"identity_index,omitempty"`
	// PartitionKey is pg_get_partkeydef of a partitioned table; Bound is a partition's "FOR VALUES …" or
	// "DEFAULT", Parents what it inherits from or is a partition of.
	PartitionKey string   `json:"partition_key,omitempty"`
	Bound        string   `json:"bound,omitempty"`
	Parents      []Name   `json:"parents,omitempty"`
	Ancestors    []Name   `json:"ancestors,omitempty"` // of a partition: parent first, root last
	Comment      *string  `json:"comment,omitempty"`
	Options      []string `json:"options,omitempty"` // pg_class.reloptions

	Columns     []ColumnShape     `json:"columns"`
	Constraints []ConstraintShape `json:"constraints,omitempty"`
	Indexes     []IndexShape      `json:"indexes,omitempty"` // those that no constraint owns
}

// Qualified gives the table's name.
func (t *TableShape) Qualified() Name { return Name{Schema: t.Schema, Name: t.Name} }

// ColumnShape is a column's structure.
type ColumnShape struct {
	// Num is pg_attribute.attnum: the same column, whatever its name becomes.
	Num  int16  `json:"num"`
	Name string `json:"name"`
	// Source is the column's name at the source, where rules give it another one.
	Source string `json:"source,omitempty"`
	// Type is format_type's text under an empty search path, modifier included: "numeric(10,2)", "public.mood[]".
	Type      string `json:"type"`
	Collation *Name  `json:"collation,omitempty"` // if it isn't the type's own
	NotNull   bool   `json:"not_null,omitempty"`
	// Default is pg_get_expr's text: of a generated column, its expression.
	Default   *string `json:"default,omitempty"`
	Identity  string  `json:"identity,omitempty"`  // pg_attribute.attidentity: "a" always, "d" by default
	Generated string  `json:"generated,omitempty"` // pg_attribute.attgenerated: "s" stored, "v" virtual
	// Missing is the value, in text, that rows older than the column have (pg_attribute.attmissingval): the
	// constant that ADD COLUMN … DEFAULT now() left behind.
	Missing *string `json:"missing,omitempty"`
	Comment *string `json:"comment,omitempty"`
	// Local: not, or not only, inherited.
	Local bool `json:"local,omitempty"`
}

// ConstraintShape is a constraint, by pg_get_constraintdef.
type ConstraintShape struct {
	OID  uint32 `json:"oid"`
	Name string `json:"name"`
	// Kind is pg_constraint.contype: "p" primary key, "u" unique, "f" foreign key, "c" check, "x" exclusion, "n" not null.
	Kind       string  `json:"kind"`
	Definition string  `json:"definition"`
	Columns    []int16 `json:"columns,omitempty"` // attnums of the table's columns that it is about
	Comment    *string `json:"comment,omitempty"`
	Local      bool    `json:"local,omitempty"` // not, or not only, inherited
}

// IndexShape is an index, by pg_get_indexdef.
type IndexShape struct {
	OID        uint32  `json:"oid"`
	Name       string  `json:"name"`
	Definition string  `json:"definition"`
	Columns    []int16 `json:"columns,omitempty"` // attnums of the columns that it needs, in expressions too
	Valid      bool    `json:"valid"`             // false: a concurrent build that has failed, or goes on
	Comment    *string `json:"comment,omitempty"`
	Parent     *Name   `json:"parent,omitempty"` // of a partition's index, the partitioned index
}

// TypeShape is the structure of a type that isn't built in.
type TypeShape struct {
	OID    uint32        `json:"oid"`
	Schema string        `json:"schema"`
	Name   string        `json:"name"`
	Kind   string        `json:"kind"` // pg_type.typtype: "e" enum, "c" composite, "d" domain, "r" range
	Made   bool          `json:"made,omitempty"`
	Labels []string      `json:"labels,omitempty"` // of an enum, in order
	Fields []ColumnShape `json:"fields,omitempty"` // of a composite
	// Base, NotNull, Default and Constraints are a domain's; Base is a range's subtype, too.
	Base        string            `json:"base,omitempty"`
	Collation   *Name             `json:"collation,omitempty"` // of a domain or a range, if it isn't Base's own
	NotNull     bool              `json:"not_null,omitempty"`
	Default     *string           `json:"default,omitempty"`
	Constraints []ConstraintShape `json:"constraints,omitempty"`
	Comment     *string           `json:"comment,omitempty"`
}

// Qualified gives the type's name.
func (t *TypeShape) Qualified() Name { return Name{Schema: t.Schema, Name: t.Name} }

// Dropped is a row of pg_event_trigger_dropped_objects.
type Dropped struct {
	// Kind is object_type: "table", "table column", "index", "table constraint", "type", "composite type column", "default value", …
	Kind   string `json:"kind"`
	OID    uint32 `json:"oid"`
	Num    int16  `json:"num,omitempty"` // objsubid: a column's attnum
	Schema string `json:"schema,omitempty"`
	Name   string `json:"name,omitempty"`
	// Address is address_names: schema, table, column for a column.
	Address []string `json:"address,omitempty"`
	// Original: named by the command; else it went with what it depended on.
	Original bool `json:"original,omitempty"`
	Normal   bool `json:"normal,omitempty"`
}
