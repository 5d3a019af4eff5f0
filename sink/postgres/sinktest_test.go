package postgres

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

func TestSinkPassesTheSuite(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		db := flotest.Postgres(t)
		return sinktest.Harness{
			Open:    func(t testing.TB) sink.Sink { return newSink(t, db.URL) },
			Prepare: func(t testing.TB, rel *decode.Relation) { createTable(t, db, rel) },
			Rows:    func(t testing.TB, rel *decode.Relation) []sinktest.Row { return tableRows(t, db, rel) },
		}
	})
}

func createTable(t testing.TB, db *flotest.DB, rel *decode.Relation) {
	var columns []string
	for _, c := range rel.Columns {
		columns = append(columns, pgx.Identifier{c.Name}.Sanitize()+" text")
	}
	db.Exec(t, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{rel.Schema}.Sanitize())
	db.Exec(t, "CREATE TABLE "+pgx.Identifier{rel.Schema, rel.Name}.Sanitize()+" ("+strings.Join(columns, ", ")+", PRIMARY KEY (id))")
}

func tableRows(t testing.TB, db *flotest.DB, rel *decode.Relation) (list []sinktest.Row) {
	rows, err := db.Conn(t).Query(t.Context(), "SELECT * FROM "+pgx.Identifier{rel.Schema, rel.Name}.Sanitize())
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		values := make([]*string, len(rel.Columns))
		into := make([]any, len(values))
		row := sinktest.Row{}
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		for i, c := range rel.Columns {
			row[c.Name] = values[i]
		}
		list = append(list, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}
