package wire

import (
	"encoding/json"
	"fmt"
)

// Walk calls f for each record of a body, in order, until one returns an error.
func Walk(body []byte, f func(Record) error) error {
	for len(body) > 0 {
		rec, rest, err := Next(body)
		if err != nil {
			return err
		}
		if err := f(rec); err != nil {
			return err
		}
		body = rest
	}
	return nil
}

// JSON reads the data of one of flo's own records into v.
func (r Record) JSON(v any) error {
	if err := json.Unmarshal(r.Data, v); err != nil {
		return fmt.Errorf("%w: record %#x: %w", ErrFormat, byte(r.Type), err)
	}
	return nil
}
