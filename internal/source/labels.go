package source

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// EnumLabels reads the labels that an enum has now, in their order; none if there is no such type.
func EnumLabels(ctx context.Context, conn *pgx.Conn, oid uint32) ([]string, error) {
	types, err := readTypes(ctx, conn, []uint32{oid})
	if err != nil || len(types) == 0 {
		return nil, err
	}
	return types[0].Labels, nil
}
