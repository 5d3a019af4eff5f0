package decode

// Presence says what stands in a column's place. The four are different things everywhere in flo.
type Presence uint8

const (
	Absent    Presence = iota // the column is not there: excluded, or not part of a key-only old row
	Null                      // SQL NULL
	Unchanged                 // an out-of-line (TOAST) value that the update left alone; PostgreSQL does not send it
	Present                   // a value, in PostgreSQL's text format
)

// String gives the lower-case word: "absent", "null", "unchanged", "present".
func (p Presence) String() string {
	switch p {
	case Absent:
		return "absent"
	case Null:
		return "null"
	case Unchanged:
		return "unchanged"
	case Present:
		return "present"
	}
	return "unknown"
}

// Value is one column of a row: bytes and a type until somebody asks. The zero Value is Absent.
type Value struct {
	data     []byte
	typ      *Type
	presence Presence
}

// TextValue makes a present value from PostgreSQL's text format. It keeps b.
func TextValue(t *Type, b []byte) Value { return Value{data: b, typ: t, presence: Present} }

// NullValue makes an SQL NULL of the type.
func NullValue(t *Type) Value { return Value{typ: t, presence: Null} }

// UnchangedValue makes the mark of a TOAST value that an update left alone.
func UnchangedValue(t *Type) Value { return Value{typ: t, presence: Unchanged} }

// Presence says which of absent, null, unchanged and present the value is.
func (v Value) Presence() Presence { return v.presence }

// IsNull reports whether the value is SQL NULL.
func (v Value) IsNull() bool { return v.presence == Null }

// Bytes gives PostgreSQL's text format without copying; nil unless Present. A present empty string is
// an empty slice that is not nil.
func (v Value) Bytes() []byte {
	if v.presence == Present && v.data == nil {
		return []byte{}
	}
	return v.data
}

// String gives PostgreSQL's text format, "" unless Present.
func (v Value) String() string { return string(v.data) }

// Type gives the column's type; nil for an absent value.
func (v Value) Type() *Type { return v.typ }

// Row is the columns of one row, in the order of Relation.Columns. A nil Row is no row.
type Row []Value
