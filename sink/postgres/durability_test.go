package postgres

import (
	"errors"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

// lazyServer keeps commits that nobody waits for in memory, so that a crash loses them.
func lazyServer(t *testing.T) *flotest.Server {
	flotest.RequireOwnServer(t)
	return flotest.NewServer(t, flotest.WithSetting("wal_writer_delay", "10s"), flotest.WithSetting("wal_writer_flush_after", "1GB"), flotest.WithSetting("autovacuum", "off"))
}

// With CommitOff a crash loses what was committed lazily, whole and with its checkpoint, and nothing that is in front of a
// commit that was waited for: a flush, a batch that isn't lazy, or another Open.
func TestACrashLosesLazyBatchesWholeUntilOneIsWaitedFor(t *testing.T) {
	server := lazyServer(t)
	lost := 0
	for _, lanes := range []int{1, 3} {
		db := server.NewDB(t)
		db.Exec(t, "CREATE TABLE t (k int PRIMARY KEY, v text)")
		r := &rig{t: t, db: db, st: sink.Start{Group: "g", Worker: "w", Incarnation: "one", Epoch: 1}}
		r.sink = newSink(t, db.URL, WithSynchronousCommit(CommitOff), WithApplyConnections(lanes))
		r.open()
		rows := 0
		upTo := map[uint64]int{} // rows, by the checkpoint's sequence
		write := func(lazy bool) {
			t.Helper()
			changes := inserts(rel("t", "*k", "v"), rows, 100)
			rows += len(changes)
			cp := r.checkpoint()
			for i, c := range changes {
				c.Tx, c.Ordinal = &decode.Tx{CommitLSN: cp.LSN, EndLSN: cp.End}, uint64(i+1)
			}
			if err := r.sink.Write(testContext(t), &sink.Batch{Changes: changes, Checkpoint: cp, Epoch: r.st.Epoch, Lazy: lazy}); err != nil {
				t.Fatal(err)
			}
			upTo[r.seq] = rows
		}
		write(false)
		for _, step := range []struct {
			name string
			do   func()
			kept bool
		}{
			{"a lazy batch", func() { write(true) }, false},
			{"two lazy ones", func() { write(true); write(true) }, false},
			{"flushed", func() {
				write(true)
				write(true)
				if err := r.sink.Flush(testContext(t)); err != nil {
					t.Fatal(err)
				}
			}, true},
			{"a batch that is waited for", func() { write(true); write(false) }, true},
			{"opened again", func() { write(true); r.open() }, true},
		} {
			// It flushes when it begins, and then every ten seconds.
			for ctx := testContext(t); db.QueryString(t, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walwriter' AND wait_event = 'WalWriterMain'") != "1"; {
				if ctx.Err() != nil {
					t.Fatal("the WAL writer does not rest")
				}
			}
			least := r.seq
			step.do()
			r.want("SELECT count(*) FROM t", is(numberText(rows))) // though it may not stay
			if step.kept {
				least = r.seq
			}
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := server.Start(testContext(t)); err != nil {
				t.Fatal(err)
			}
			var cp decode.Checkpoint
			for ctx := testContext(t); ; {
				var err error
				if cp, err = r.sink.Open(ctx, r.st); err == nil {
					break
				} else if sink.IsPermanent(err) || ctx.Err() != nil {
					t.Fatal(err)
				}
			}
			if cp.Seq < least || cp.Seq > r.seq {
				t.Fatalf("%d connections, %s: checkpoint %d behind the crash, want %d to %d", lanes, step.name, cp.Seq, least, r.seq)
			}
			if cp.Seq < r.seq {
				lost++
			}
			r.seq = cp.Seq
			rows = upTo[cp.Seq]
			if lanes == 1 { // of several connections some may be ahead
				r.want("SELECT count(*) FROM t", is(numberText(rows)))
			}
		}
		write(false)
		r.want("SELECT count(*), max(k) FROM t", is(numberText(rows), numberText(rows-1)))
	}
	t.Logf("%d crashes lost something", lost)
	if lost == 0 {
		t.Error("no crash has lost what was committed lazily")
	}
}

// What sessions commit with, by option and by what the connection asks for.
func TestSynchronousCommit(t *testing.T) {
	db := flotest.Postgres(t)
	for _, test := range []struct{ param, option, want string }{
		{"", "", "on"}, {"off", "", "on"}, {"local", "", "local"}, {"remote_apply", "", "remote_apply"},
		{"off", CommitOff, "on"}, {"local", CommitOff, "on"}, {"remote_apply", CommitOff, "remote_apply"},
		{"off", CommitLocal, "local"}, {"", CommitRemoteWrite, "remote_write"}, {"local", CommitOn, "on"}, {"off", CommitRemoteApply, "remote_apply"},
	} {
		url := db.URL
		if test.param != "" {
			url += "&options=-csynchronous_commit%3D" + test.param
		}
		var opts []Option
		if test.option != "" {
			opts = append(opts, WithSynchronousCommit(test.option))
		}
		s := newSink(t, url, opts...)
		if _, err := s.Open(testContext(t), sink.Start{Group: "g", Worker: "w", Epoch: uint64(time.Now().UnixNano())}); err != nil {
			t.Fatal(err)
		}
		rows, err := query(t.Context(), s.main.pg, "SHOW synchronous_commit")
		if err != nil || string(rows[0][0]) != test.want {
			t.Errorf("%+v: %s, %v", test, rows, err)
		}
		if s.Lags() != (test.option == CommitOff) {
			t.Errorf("%+v: Lags is %v", test, s.Lags())
		}
		if err := s.Flush(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	for _, level := range []string{"", "of", "ON"} {
		if _, err := New(db.URL, WithSynchronousCommit(level)); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%q: %v", level, err)
		}
	}
}
