package postgres

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

const benchDDL = `CREATE TABLE b (id bigint PRIMARY KEY, n int, name text, amount numeric, doc jsonb, at timestamptz, note text)`

func benchValues(i int) []string {
	return []string{
		fmt.Sprint(i), fmt.Sprint(i % 1000), "name of row " + fmt.Sprint(i), fmt.Sprintf("%d.25", i),
		`{"a": 1, "b": "some text", "c": [1, 2, 3]}`, "2024-03-04 05:06:07.123456+00", strings.Repeat("note ", 20),
	}
}

func benchRow(i int) decode.Row {
	var values []any
	for _, v := range benchValues(i) {
		values = append(values, v)
	}
	return row(values...)
}

func benchSink(b *testing.B, n int) (*Sink, *flotest.DB) {
	db := flotest.Postgres(b)
	db.Exec(b, benchDDL)
	s := newSink(b, db.URL, WithConnections(n))
	if _, err := s.Open(b.Context(), sink.Start{Group: "g", Worker: "w", Epoch: 1}); err != nil {
		b.Fatal(err)
	}
	return s, db
}

func benchWrite(b *testing.B, rows int, change func(i int) *decode.Change, mode ...func(s *Sink)) {
	s, db := benchSink(b, 1)
	for _, f := range mode {
		f(s)
	}
	if change(0).Op != decode.OpInsert {
		db.Exec(b, `INSERT INTO b SELECT i, 1, 'x', 1, '{}', now(), 'x' FROM generate_series(0, 199999) i`)
		db.Exec(b, `VACUUM ANALYZE b`)
	}
	batch := make([]*decode.Change, rows)
	done := 0
	before := backendTime(s)
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		for i := range batch {
			batch[i] = change(done)
			done++
		}
		b.StartTimer()
		err := s.Write(b.Context(), &sink.Batch{Changes: batch, Epoch: 1, Checkpoint: decode.Checkpoint{Seq: uint64(done)}})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(done)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric((backendTime(s)-before)*1e6/float64(done), "server-µs/row")
}

// backendTime gives the CPU seconds of the server's process, where Linux tells them: other than the clock,
// they are the same on a busy machine. https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
func backendTime(s *Sink) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.main.pg.PID()))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	ticks := 0
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return float64(ticks) / 100
}

func BenchmarkWrite(b *testing.B) {
	r := rel("b", "*id", "n", "name", "amount", "doc", "at", "note")
	ins := func(i int) *decode.Change { return &decode.Change{Op: decode.OpInsert, Relation: r, New: benchRow(i)} }
	upd := func(i int) *decode.Change {
		return &decode.Change{Op: decode.OpUpdate, Relation: r, New: benchRow(i % 200000)}
	}
	b.Run("insert/1000", func(b *testing.B) { benchWrite(b, 1000, ins) })
	b.Run("update/1000", func(b *testing.B) { benchWrite(b, 1000, upd) })
	b.Run("insert/1", func(b *testing.B) { benchWrite(b, 1, ins) })
	// By COPY against statements: where leastCopied and rowGain come from.
	for _, rows := range []int{8, 16, 24, 32, 64, 256, 1000, 10000} {
		b.Run(fmt.Sprintf("insert/%d/copy", rows), func(b *testing.B) {
			benchWrite(b, rows, ins, func(s *Sink) { s.main.planner.least = 1 })
		})
		b.Run(fmt.Sprintf("insert/%d/statements", rows), func(b *testing.B) {
			benchWrite(b, rows, ins, func(s *Sink) { s.config.rowByRow = true })
		})
	}
}

// By sets against statements: updates and deletes of one row each, and where leastReduced and setGain come
// from.
func BenchmarkSets(b *testing.B) {
	r := rel("b", "*id", "n", "name", "amount", "doc", "at", "note")
	rows := make([]decode.Row, 200000)
	keys := make([]decode.Row, len(rows))
	for i := range rows {
		rows[i] = benchRow(i)
		keys[i] = make(decode.Row, len(rows[i]))
		keys[i][0] = rows[i][0]
	}
	changes := map[string]func(i int) *decode.Change{
		"update": func(i int) *decode.Change {
			return &decode.Change{Op: decode.OpUpdate, Relation: r, New: rows[i*7919%len(rows)]}
		},
		"delete": func(i int) *decode.Change {
			return &decode.Change{Op: decode.OpDelete, Relation: r, Old: keys[i*7919%len(rows)], OldKey: true}
		},
		"insert": func(i int) *decode.Change {
			return &decode.Change{Op: decode.OpInsert, Relation: r, New: benchRow(len(rows) + i)}
		},
	}
	for _, op := range []string{"update", "delete", "insert"} {
		for _, size := range []int{16, 32, 100, 1000, 10000} {
			b.Run(fmt.Sprintf("%s/%d/sets", op, size), func(b *testing.B) {
				benchWrite(b, size, changes[op], func(s *Sink) { s.main.planner.least, s.main.planner.reduced = 1<<20, 1 })
			})
			b.Run(fmt.Sprintf("%s/%d/statements", op, size), func(b *testing.B) {
				benchWrite(b, size, changes[op], func(s *Sink) { s.config.rowByRow = true })
			})
		}
	}
}

// BenchmarkPlainCopy is the yardstick of BenchmarkWrite/insert: the same rows by a COPY and nothing else.
func BenchmarkPlainCopy(b *testing.B) {
	const rows = 10000
	s, _ := benchSink(b, 1)
	done := 0
	for b.Loop() {
		b.StopTimer()
		var data strings.Builder
		for range rows {
			data.WriteString(strings.Join(benchValues(done), "\t") + "\n")
			done++
		}
		b.StartTimer()
		if _, err := s.main.pg.CopyFrom(b.Context(), strings.NewReader(data.String()), "COPY public.b FROM STDIN"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(done)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkWriteChunk(b *testing.B) {
	for _, connections := range []int{1, 2} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			const rows = 4000
			s, _ := benchSink(b, connections)
			t := sink.CopyTable{Relation: rel("b", "*id", "n", "name", "amount", "doc", "at", "note"), Source: 1, Attempt: 1, Point: 1}
			if err := s.BeginTable(b.Context(), t); err != nil {
				b.Fatal(err)
			}
			chunks := make([]*sink.CopyChunk, b.N)
			size := 0
			for c := range chunks {
				var data strings.Builder
				for i := range rows {
					data.WriteString(strings.Join(benchValues(c*rows+i), "\t") + "\n")
				}
				size = data.Len()
				chunks[c] = &sink.CopyChunk{Table: t, ID: decode.CopyID{Table: 1, Attempt: 1, Row: uint64(c * rows)}, Rows: rows, Data: []byte(data.String()), Epoch: 1}
			}
			b.SetBytes(int64(size))
			b.ResetTimer()
			var g errgroup.Group
			g.SetLimit(connections)
			for _, c := range chunks {
				g.Go(func() error { return s.WriteChunk(b.Context(), c) })
			}
			if err := g.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// Batches of one row each, as they come from a source that is not busy, into a server that waits for its disk.
func BenchmarkSynchronousCommit(b *testing.B) {
	server := flotest.NewServer(b, flotest.WithSetting("fsync", "on"))
	r := rel("b", "*id", "n", "name", "amount", "doc", "at", "note")
	for _, level := range []string{CommitOn, CommitOff} {
		b.Run(level, func(b *testing.B) {
			db := server.NewDB(b)
			db.Exec(b, benchDDL)
			s := newSink(b, db.URL, WithSynchronousCommit(level))
			if _, err := s.Open(b.Context(), sink.Start{Group: "g", Worker: "w", Epoch: 1}); err != nil {
				b.Fatal(err)
			}
			n, flushed := 0, time.Now()
			for b.Loop() {
				n++
				lazy := time.Since(flushed) < 100*time.Millisecond // as the worker does
				if !lazy {
					flushed = time.Now()
				}
				c := &decode.Change{Op: decode.OpInsert, Relation: r, New: benchRow(n)}
				if err := s.Write(b.Context(), &sink.Batch{Changes: []*decode.Change{c}, Epoch: 1, Checkpoint: decode.Checkpoint{Seq: uint64(n)}, Lazy: lazy}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
