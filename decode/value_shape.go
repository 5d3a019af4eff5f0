package decode

import (
	"bytes"
	"net"
	"net/netip"

	"github.com/jackc/pgx/v5/pgtype"
)

// Prefix gives an inet or cidr. An inet without a mask has the longest one.
func (v Value) Prefix() (netip.Prefix, error) {
	if _, _, err := v.need("Prefix", 1<<formInet); err != nil {
		return netip.Prefix{}, err
	}
	if p, err := netip.ParsePrefix(string(v.data)); err == nil {
		return p, nil
	}
	a, err := netip.ParseAddr(string(v.data))
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, v.fail("Prefix", ErrMalformed)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// MAC gives a macaddr (6 bytes) or macaddr8 (8).
func (v Value) MAC() (net.HardwareAddr, error) {
	if _, _, err := v.need("MAC", 1<<formMAC); err != nil {
		return nil, err
	}
	m, err := net.ParseMAC(string(v.data))
	if err != nil {
		return nil, v.fail("MAC", ErrMalformed)
	}
	return m, nil
}

// Bits gives a bit or bit varying; its first bit is the highest of the first byte.
func (v Value) Bits() (pgtype.Bits, error) {
	if v.presence == Present && len(bytes.Trim(v.data, "01")) > 0 { // pgtype takes what isn't 1 for 0
		if _, _, err := v.need("Bits", 1<<formBits); err != nil {
			return pgtype.Bits{}, err
		}
		return pgtype.Bits{}, v.fail("Bits", ErrMalformed)
	}
	return shape[pgtype.Bits](v, "Bits", formBits, pgtype.BitsCodec{})
}

// Point gives a point.
func (v Value) Point() (pgtype.Point, error) {
	return shape[pgtype.Point](v, "Point", formPoint, pgtype.PointCodec{})
}

// Line gives a line.
func (v Value) Line() (pgtype.Line, error) {
	return shape[pgtype.Line](v, "Line", formLine, pgtype.LineCodec{})
}

// Lseg gives a line segment.
func (v Value) Lseg() (pgtype.Lseg, error) {
	return shape[pgtype.Lseg](v, "Lseg", formLseg, pgtype.LsegCodec{})
}

// Box gives a box.
func (v Value) Box() (pgtype.Box, error) {
	return shape[pgtype.Box](v, "Box", formBox, pgtype.BoxCodec{})
}

// Path gives a path.
func (v Value) Path() (pgtype.Path, error) {
	return shape[pgtype.Path](v, "Path", formPath, pgtype.PathCodec{})
}

// Polygon gives a polygon.
func (v Value) Polygon() (pgtype.Polygon, error) {
	return shape[pgtype.Polygon](v, "Polygon", formPolygon, pgtype.PolygonCodec{})
}

// Circle gives a circle.
func (v Value) Circle() (pgtype.Circle, error) {
	return shape[pgtype.Circle](v, "Circle", formCircle, pgtype.CircleCodec{})
}

// TID gives a tid, a row's physical place.
func (v Value) TID() (pgtype.TID, error) {
	return shape[pgtype.TID](v, "TID", formTID, pgtype.TIDCodec{})
}

// TSVector gives a tsvector's lexemes with their positions and weights.
func (v Value) TSVector() (pgtype.TSVector, error) {
	return shape[pgtype.TSVector](v, "TSVector", formTSVector, pgtype.TSVectorCodec{})
}

// Hstore gives the pairs of an hstore; a nil value is NULL.
func (v Value) Hstore() (pgtype.Hstore, error) {
	return shape[pgtype.Hstore](v, "Hstore", formHstore, pgtype.HstoreCodec{})
}

// shape reads a type of one form that pgtype knows.
func shape[T any](v Value, want string, f form, codec pgtype.Codec) (T, error) {
	var none T
	if _, _, err := v.need(want, 1<<f); err != nil {
		return none, err
	}
	s, err := scanText[T](codec, v.data)
	if err != nil {
		return none, v.fail(want, ErrMalformed)
	}
	return s, nil
}
