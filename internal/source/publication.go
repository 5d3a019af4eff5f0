package source

// PublicationSpec is what should be published.
type PublicationSpec struct {
	// Name of the publication; the second one, for tables without replica identity, is Name + KeylessSuffix.
	Name string
	// Tables, as ResolveTables gave them.
	Tables []Table
}

// KeylessSuffix of the publication that publishes insert and truncate only.
const KeylessSuffix = "_keyless"

// Published is what is published now.
type Published struct {
	Names    []string // of the publications, for StreamConfig.Publications
	Tables   []Table
	Warnings []string // for the log: tables published without update and delete, and the SQL that mends it
}
