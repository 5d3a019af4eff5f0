package decode

import "slices"

// Clone gives a copy of c that shares no bytes with it, for a sink that keeps changes beyond Write.
// Relations and types, which never change, are shared; Tx is copied.
func (c *Change) Clone() *Change {
	d := *c
	size := 0
	for _, row := range [...]Row{c.Old, c.New} {
		for i := range row {
			size += len(row[i].data)
		}
	}
	buf := make([]byte, 0, size)
	d.Old, buf = cloneRow(c.Old, buf)
	d.New, _ = cloneRow(c.New, buf)
	d.Tx = clonePointer(c.Tx)
	d.Copy = clonePointer(c.Copy)
	if c.Schema != nil {
		d.Schema = c.Schema.Clone()
	}
	if d.Truncate = clonePointer(c.Truncate); d.Truncate != nil {
		d.Truncate.Relations = slices.Clone(d.Truncate.Relations)
	}
	if d.Message = clonePointer(c.Message); d.Message != nil {
		d.Message.Content = slices.Clone(d.Message.Content)
	}
	return &d
}

func clonePointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// cloneRow copies a row, its bytes to the free room of buf, and gives buf with them.
func cloneRow(row Row, buf []byte) (Row, []byte) {
	if row == nil {
		return nil, buf
	}
	out := make(Row, len(row))
	for i := range row {
		out[i] = row[i]
		if row[i].data == nil {
			continue
		}
		from := len(buf)
		buf = append(buf, row[i].data...)
		out[i].data = buf[from:len(buf):len(buf)]
	}
	return out, buf
}
