package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
)

// parse reads a request's body, of no more than a bound when it is decompressed.
func parse(body []byte, encoding string) (list []change, err error) {
	var in io.Reader = bytes.NewReader(body)
	if encoding == "gzip" {
		if in, err = gzip.NewReader(in); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(in, maxBody+1))
	if err == nil && len(data) > maxBody {
		err = fmt.Errorf("more than %d bytes", maxBody)
	}
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	return list, err
}
