package decode

import (
	"sync"

	"github.com/jackc/pgx/v5/pgtype"
)

const catalogSchema = "pg_catalog"

// FirstUserOID is where the OIDs of objects that users create begin (FirstNormalObjectId in
// src/include/access/transam.h). Types below it that BuiltinType doesn't know, such as the row types
// of catalog tables and information_schema's domains, may differ between PostgreSQL's versions.
const FirstUserOID = 16384

// BuiltinType gives a type of pg_catalog whose OID never changes, nil if the OID is not one's. A type
// for which it gives nil needs a TypeDescription.
func BuiltinType(oid uint32) *Type {
	if oid >= lastFixedOID {
		return nil
	}
	return builtinTypes()[oid]
}

// lastFixedOID is above all OIDs that PostgreSQL's sources assign by hand (FirstGenbkiObjectId).
const lastFixedOID = 10000

// builtinTypes is made once and never changed.
var builtinTypes = sync.OnceValue(func() map[uint32]*Type {
	m := make(map[uint32]*Type, 256)
	driver := pgtype.NewMap()
	for oid := range uint32(lastFixedOID) {
		if t, ok := driver.TypeForOID(oid); ok {
			addDriverType(m, t)
		}
	}
	for _, t := range otherTypes {
		elem := m[t.oid]
		if elem == nil {
			elem = &Type{OID: t.oid, Schema: catalogSchema, Name: t.name}
			m[t.oid] = elem
		}
		m[t.array] = &Type{OID: t.array, Schema: catalogSchema, Name: "_" + t.name, Kind: ArrayType, Elem: elem}
	}
	return m
})

// addDriverType adds a type that pgx knows, and what it is made of. Of a multirange, that is its range.
func addDriverType(m map[uint32]*Type, d *pgtype.Type) *Type {
	if t := m[d.OID]; t != nil {
		return t
	}
	t := &Type{OID: d.OID, Schema: catalogSchema, Name: d.Name}
	m[d.OID] = t
	switch c := d.Codec.(type) {
	case *pgtype.ArrayCodec:
		t.Kind, t.Elem = ArrayType, addDriverType(m, c.ElementType)
	case *pgtype.RangeCodec:
		t.Kind, t.Elem = RangeType, addDriverType(m, c.ElementType)
	case *pgtype.MultirangeCodec:
		t.Kind, t.Elem = MultirangeType, addDriverType(m, c.ElementType)
	}
	if d.OID == pgtype.RecordOID || d.OID == pgtype.UnknownOID {
		t.Kind = PseudoType
	}
	return t
}

// otherTypes are the types of pg_catalog that pgx leaves out, or whose arrays it leaves out: all that
// a table's column can have.
// https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat
var otherTypes = [...]struct {
	oid, array uint32
	name       string
}{
	{22, 1006, "int2vector"},
	{24, 1008, "regproc"},
	{30, 1013, "oidvector"},
	{774, 775, "macaddr8"},
	{790, 791, "money"},
	{1266, 1270, "timetz"},
	{1790, 2201, "refcursor"},
	{2202, 2207, "regprocedure"},
	{2203, 2208, "regoper"},
	{2204, 2209, "regoperator"},
	{2205, 2210, "regclass"},
	{2206, 2211, "regtype"},
	{2970, 2949, "txid_snapshot"},
	{3220, 3221, "pg_lsn"},
	{3615, 3645, "tsquery"},
	{3642, 3644, "gtsvector"},
	{3734, 3735, "regconfig"},
	{3769, 3770, "regdictionary"},
	{4089, 4090, "regnamespace"},
	{4096, 4097, "regrole"},
	{4191, 4192, "regcollation"},
	{4451, 6150, "int4multirange"},
	{4532, 6151, "nummultirange"},
	{4533, 6152, "tsmultirange"},
	{4534, 6153, "tstzmultirange"},
	{4535, 6155, "datemultirange"},
	{4536, 6157, "int8multirange"},
	{5038, 5039, "pg_snapshot"},
}
