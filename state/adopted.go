package state

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"maps"
)

// Adopted is what a group remembers of its publications, its own or somebody else's: their tables, which are copied by
// now or being copied, each with what published it then.
type Adopted struct {
	Tables map[uint32][]uint32 `json:"tables"` // OIDs of the publications' entries, by the table's
	// Publications by their names; nil in a record of an older version.
	Publications map[string]Publication `json:"publications,omitempty"`
}

// Publication is the state of a publication's row in the source's catalog.
type Publication struct {
	OID   uint32 `json:"oid"`
	Owner uint32 `json:"owner"`
	Row   uint32 `json:"row"` // its xmin, which is another one whenever its options are set
}

// packedFrom is the size in bytes from which the record is compressed: the OIDs of many tables, which hardly differ, would
// not fit into a message otherwise.
const packedFrom = 64 << 10

// adoptedRecord is how it is written; a large one is compressed.
type adoptedRecord struct {
	Adopted
	Packed []byte `json:"packed,omitempty"` // gzip of the JSON
}

// pack gives the record's text.
func (a Adopted) pack() ([]byte, error) {
	value, err := json.Marshal(a)
	if err != nil || len(value) < packedFrom {
		return value, err
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err = w.Write(value); err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(adoptedRecord{Packed: b.Bytes()})
}

// unpack gives what was written.
func (r *adoptedRecord) unpack() (a Adopted, err error) {
	if len(r.Packed) == 0 {
		return r.Adopted, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(r.Packed))
	if err == nil {
		err = json.NewDecoder(z).Decode(&a)
	}
	if err != nil {
		return a, fmt.Errorf("state: %s is not a record of flo: %w", keyAdopted, err)
	}
	return a, nil
}

const keyAdopted = "adopted"

// Adopted implements Store.
func (s *natsStore) Adopted(ctx context.Context) (a Adopted, err error) {
	var r adoptedRecord
	if _, err = s.get(ctx, keyAdopted, &r); err != nil {
		return a, err
	}
	return r.unpack()
}

// PutAdopted implements Store.
func (s *natsStore) PutAdopted(ctx context.Context, a Adopted) error {
	value, err := a.pack()
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := s.kv.Put(ctx, keyAdopted, value); err != nil {
		return fmt.Errorf("state: write %s: %w", keyAdopted, err)
	}
	return nil
}

// Adopted implements Store.
func (m *Memory) Adopted(ctx context.Context) (Adopted, error) {
	if err := ctx.Err(); err != nil {
		return Adopted{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.adopted == nil {
		return Adopted{}, fmt.Errorf("%w: %s", ErrNotFound, keyAdopted)
	}
	return *m.adopted, nil
}

// PutAdopted implements Store.
func (m *Memory) PutAdopted(ctx context.Context, a Adopted) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.adopted = &Adopted{Tables: maps.Clone(a.Tables), Publications: maps.Clone(a.Publications)}
	return nil
}
