package decode

// TypeKind is pg_type.typtype in words.
type TypeKind uint8

const (
	BaseType TypeKind = iota // pg_type.typtype 'b'; also what is not known
	ArrayType
	EnumType
	DomainType
	CompositeType
	RangeType
	MultirangeType
	PseudoType
)

// Type is a PostgreSQL data type, known by name and kind, not only by OID: OIDs of types that users
// create differ from database to database.
type Type struct {
	OID       uint32
	Schema    string // "pg_catalog" for built-in types
	Name      string // pg_type.typname, for example "int4", "_text"
	Kind      TypeKind
	Extension string   // the extension that owns it, "" if none
	Elem      *Type    // of an array, its element; of a domain, its base; of a range, its subtype; of a multirange, its range
	Delimiter byte     // pg_type.typdelim: what stands between its values in an array; 0 for a comma (and box's semicolon)
	Labels    []string // of an enum, in order
	Fields    []Field  // of a composite
}

// Field is an attribute of a composite type.
type Field struct {
	Name string
	Type *Type
}

// Column of a relation, as pgoutput's Relation message describes it.
type Column struct {
	Name     string
	Type     *Type
	Modifier int32 // pg_attribute.atttypmod, -1 if none
	Key      bool  // part of the replica identity
}

// Identity is pg_class.relreplident.
type Identity byte

const (
	IdentityDefault Identity = 'd' // the primary key
	IdentityNothing Identity = 'n'
	IdentityFull    Identity = 'f' // the whole row
	IdentityIndex   Identity = 'i'
)

// Name is a schema-qualified name, exact, never folded or quoted.
type Name struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
}

// String gives "schema.name", unquoted, for people.
func (n Name) String() string { return n.Schema + "." + n.Name }

// Relation is a table as it was when a change was made. It is immutable, one pointer a version:
// what depends on it (resolved columns, prepared statements) can be kept in a map by pointer.
type Relation struct {
	OID       uint32
	Schema    string
	Name      string
	Identity  Identity
	Columns   []Column
	Ancestors []Name // of a leaf partition: parent first, root last; then those that it had once
	// OtherNames are those that the table was seen under before, or got since. Rules for one of them hold
	// for it, so that no rename lets data pass as it is.
	OtherNames []Name
}

// Qualified gives the relation's name.
func (r *Relation) Qualified() Name { return Name{Schema: r.Schema, Name: r.Name} }

// Column gives the index of a column by its exact name, or -1.
func (r *Relation) Column(name string) int {
	for i := range r.Columns {
		if r.Columns[i].Name == name {
			return i
		}
	}
	return -1
}

// HasKey reports whether rows can be found again by key columns (not by the whole row).
func (r *Relation) HasKey() bool {
	if r.Identity == IdentityFull {
		return false
	}
	for i := range r.Columns {
		if r.Columns[i].Key {
			return true
		}
	}
	return false
}
