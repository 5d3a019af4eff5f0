package decode

// Description is what a relation's Relation message leaves out and a worker needs: the ancestors of a
// partition, the other names that the table was seen under, and the types that are not built in. The replicator reads it from the catalog; workers
// never ask the source. It travels as JSON.
type Description struct {
	Relation uint32 `json:"relation"` // OID
	// Ancestors are those of now, parent first, root last, then all others that it was seen to have.
	Ancestors []Name `json:"ancestors,omitempty"`
	// OtherNames are those that it was seen under, but for the Relation message's: before a rename or
	// SET SCHEMA, and behind one.
	OtherNames []Name            `json:"other_names,omitempty"`
	Types      []TypeDescription `json:"types,omitempty"` // all that the columns need, elements and bases included
	// New: the table was made since the replicator started, and its rows may come before the schema change that
	// tells of it (CREATE TABLE AS).
	New bool `json:"new,omitempty"`
}

// TypeDescription describes one type by the OIDs of what it is made of.
type TypeDescription struct {
	OID       uint32             `json:"oid"`
	Schema    string             `json:"schema"`
	Name      string             `json:"name"`
	Kind      TypeKind           `json:"kind"`
	Extension string             `json:"extension,omitempty"`
	Elem      uint32             `json:"elem,omitempty"`
	Delimiter byte               `json:"delimiter,omitempty"` // pg_type.typdelim, 0 for a comma
	Labels    []string           `json:"labels,omitempty"`
	Fields    []FieldDescription `json:"fields,omitempty"`
}

// FieldDescription is an attribute of a composite type.
type FieldDescription struct {
	Name string `json:"name"`
	Type uint32 `json:"type"`
}
