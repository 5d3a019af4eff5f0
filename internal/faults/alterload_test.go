//go:build unix

package faults

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// alterer is a session that changes the tables themselves while the writers go on: columns of its own beside theirs,
// wider types, indexes, and tables that come and go.
type alterer struct {
	*writer
	named int // names given so far
}

// startAlterations starts one, that waits until it may begin. Its name among the writers is out of their way.
func startAlterations(r *rig, l *load, ctx context.Context, seed uint64, may func(context.Context) bool) {
	a := &alterer{writer: &writer{load: l, rnd: random(seed, 2000), id: 100, url: r.source}}
	a.does = a.transaction
	l.wg.Go(func() {
		for ctx.Err() == nil && !may(ctx) {
			pause(ctx, 20*time.Millisecond)
		}
		a.run(ctx)
	})
}

// known reports whether the sinks know the tables that stood at the destinations before the copy: those that differ
// then already are refused. Tables that a sink makes itself may be altered before it does.
func (r *randomRun) known(ctx context.Context) bool {
	const tables = 11 // of mixedSchema and moreSchema, partitions included
	for _, url := range r.urls {
		n, err := query[int](ctx, url, `SELECT count(DISTINCT source) FROM flo.structures WHERE kind = 'table'`)
		if !r.plan.bare && (err != nil || n < tables) {
			return false
		}
	}
	return true
}

// transaction is one to three schema changes with rows before, between and behind them. It may be rolled back, or
// prepared first, as a whole or to a savepoint.
func (a *alterer) transaction(ctx context.Context, conn *pgx.Conn) error {
	pause(ctx, between(a.rnd, 50*time.Millisecond, 400*time.Millisecond))
	a.n++
	work := context.WithoutCancel(ctx)
	tx, err := conn.Begin(work)
	if err != nil {
		return err
	}
	n, err := a.alterations(work, tx)
	if err != nil {
		tx.Rollback(work)
		return err
	}
	switch a.rnd.IntN(10) {
	case 0:
		if err := tx.Rollback(work); err != nil {
			return err
		}
		return errChosen
	case 1:
		err = a.prepareAndEnd(ctx, conn)
	default:
		err = tx.Commit(work)
	}
	if err == nil {
		a.altered.Add(n)
	}
	return err
}

func (a *alterer) alterations(ctx context.Context, tx pgx.Tx) (n int64, err error) {
	for range 1 + a.rnd.IntN(3) {
		if a.rnd.IntN(2) == 0 {
			if err := a.change(ctx, tx); err != nil {
				return 0, err
			}
		}
		err := a.alteration(ctx, tx)
		if err != nil {
			return 0, err
		}
		n++
		if a.rnd.IntN(4) > 0 {
			continue
		}
		sp, err := tx.Begin(ctx)
		if err == nil {
			err = a.alteration(ctx, sp)
		}
		if err == nil {
			err = a.change(ctx, sp)
		}
		if err == nil {
			err = sp.Rollback(ctx)
		}
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// alterable are the tables that are altered, each with what takes a fifth of its rows; "" where updates aren't published.
var alterable = []struct{ table, fifth string }{
	{`"Mixed Case"`, "id % 5 = 0"}, {"pairs", "a % 5 = 0"}, {"append_log", ""}, {"scratch", "id % 5 = 0"},
	{"whole", "a % 5 = 0"}, {"by_index", "id % 5 = 0"}, {"computed", "id % 5 = 0"}, {"parts", "id % 5 = 0"},
}

// ownColumn is a column that the alterer has added.
type ownColumn struct{ Name, Type string }

func (a *alterer) columns(ctx context.Context, tx pgx.Tx, table string) ([]ownColumn, error) {
	rows, err := tx.Query(ctx, `SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type FROM pg_attribute
		WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attname LIKE 'x\_%' ORDER BY attname`, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[ownColumn])
}

// name gives one that no other thing has.
func (a *alterer) name(kind string) string {
	a.named++
	return fmt.Sprintf("%s_%d", kind, a.named)
}

// alteration is one schema change and, of some, rows that need it.
func (a *alterer) alteration(ctx context.Context, tx pgx.Tx) error {
	exec := func(sql string, args ...any) error {
		if _, err := tx.Exec(ctx, sql, args...); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		return nil
	}
	of := alterable[a.rnd.IntN(len(alterable))]
	cols, err := a.columns(ctx, tx, of.table)
	if err != nil {
		return err
	}
	n := a.rnd.IntN(100)
	if len(cols) == 0 && n < 60 {
		n = 0
	}
	own := ownColumn{}
	if len(cols) > 0 {
		own = cols[a.rnd.IntN(len(cols))]
	}
	switch {
	case n < 26:
		return a.add(exec, of.table, of.fifth)
	case n < 36:
		return exec("ALTER TABLE " + of.table + " DROP COLUMN " + own.Name)
	case n < 46:
		return exec("ALTER TABLE " + of.table + " RENAME COLUMN " + own.Name + " TO " + a.name("x"))
	case n < 60:
		return a.widen(exec, of.table, own)
	case n < 65 && a.truncates.Load(): // rows that are written anew
		return exec(pick(a.rnd, `ALTER TABLE "Mixed Case" ALTER n TYPE bigint`, "ALTER TABLE pairs ALTER a TYPE bigint",
			"ALTER TABLE by_index ALTER id TYPE bigint", "ALTER TABLE whole ALTER a TYPE bigint"))
	case n < 72:
		return a.index(ctx, tx, exec, of.table, own)
	case n < 92 || !a.truncates.Load():
		return a.wholeTable(ctx, tx, exec)
	}
	return exec("TRUNCATE " + pick(a.rnd, "scratch", "pairs", "scratch, computed"))
}

// add gives a table a column, and some rows a value in it.
func (a *alterer) add(exec func(string, ...any) error, table, fifth string) error {
	col := a.name("x")
	kind := pick(a.rnd, "int DEFAULT 7", "int", "text DEFAULT 'before'", "varchar(20) DEFAULT 'short'", "timestamptz DEFAULT now()",
		"text NOT NULL DEFAULT 'always'", "numeric(8,2) DEFAULT 1.50")
	if err := exec("ALTER TABLE " + table + " ADD COLUMN " + col + " " + kind); err != nil || fifth == "" || a.rnd.IntN(2) == 0 {
		return err
	}
	value := "'12'"
	if strings.HasPrefix(kind, "timestamptz") {
		value = "clock_timestamp()"
	}
	return exec("UPDATE " + table + " SET " + col + " = " + value + " WHERE " + fifth)
}

// widen gives a column of its own a type that holds more.
func (a *alterer) widen(exec func(string, ...any) error, table string, c ownColumn) error {
	to := map[string]string{
		"character varying(20)": "varchar(40)", "character varying(40)": "text", "numeric(8,2)": "numeric(12,2)",
		"numeric(12,2)": "numeric",
	}[c.Type]
	if c.Type == "integer" && a.truncates.Load() { // rows that are written anew
		to = "bigint"
	}
	if to == "" {
		value := map[string]string{"timestamp with time zone": "now()"}[c.Type]
		if value == "" {
			value = "'9'"
		}
		return exec("ALTER TABLE " + table + " ALTER " + c.Name + " SET DEFAULT " + value)
	}
	return exec("ALTER TABLE " + table + " ALTER " + c.Name + " TYPE " + to)
}

// index makes one, or drops one.
func (a *alterer) index(ctx context.Context, tx pgx.Tx, exec func(string, ...any) error, table string, c ownColumn) error {
	var old *string
	if err := tx.QueryRow(ctx, `SELECT min(relname::text) FROM pg_class WHERE relkind IN ('i', 'I') AND relname LIKE 'made\_index%' AND NOT relispartition`).Scan(&old); err != nil {
		return err
	}
	if old != nil && a.rnd.IntN(2) == 0 {
		return exec("DROP INDEX " + *old)
	}
	if c.Name == "" {
		return exec("CREATE INDEX " + a.name("made_index") + " ON computed (n)")
	}
	return exec("CREATE INDEX " + a.name("made_index") + " ON " + table + " (" + c.Name + ")")
}

// wholeTable makes a table and fills it, or does something to one that it has made before.
func (a *alterer) wholeTable(ctx context.Context, tx pgx.Tx, exec func(string, ...any) error) error {
	rows, err := tx.Query(ctx, `SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname LIKE 'made\_table%' ORDER BY relname`)
	if err != nil {
		return err
	}
	made, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	fill := func(table string, n int) error {
		return exec("INSERT INTO "+table+" (id, v) SELECT i, $1 || i FROM generate_series($2::int, $2::int + $3::int) i ON CONFLICT DO NOTHING", a.words(30), a.rnd.IntN(1000), n)
	}
	if len(made) == 0 || len(made) < 3 && a.rnd.IntN(3) == 0 {
		table := a.name("made_table")
		if err := exec("CREATE TABLE " + table + " (id int PRIMARY KEY, v text, w varchar(20) DEFAULT 'w')"); err != nil {
			return err
		}
		return fill(table, a.rnd.IntN(400))
	}
	table := made[a.rnd.IntN(len(made))]
	switch n := a.rnd.IntN(10); {
	case n < 3:
		return exec("DROP TABLE " + table)
	case n < 5:
		return fill(table, a.rnd.IntN(400))
	case n < 7:
		return exec("UPDATE " + table + " SET v = v || 'x' WHERE id % 3 = 0")
	case n < 8 && a.truncates.Load():
		return exec("TRUNCATE " + table)
	case n < 9:
		return a.add(exec, table, "id % 5 = 0")
	}
	return exec("ALTER TABLE " + table + " RENAME TO " + a.name("made_table"))
}
