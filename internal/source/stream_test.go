package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
)

func TestStatusBytes(t *testing.T) {
	// From the protocol's description: Byte1('r') Int64 write, Int64 flush, Int64 apply, Int64 clock, Byte1 reply.
	at := time.Date(2000, 1, 1, 0, 0, 1, 2000, time.UTC)
	got := appendStatus(nil, 0x16B374D848, 0, at)
	want := "64" + "00000026" + "72" + "00000016b374d848" + "0000000000000000" + "0000000000000000" + "00000000000f4242" + "00"
	if hex.EncodeToString(got) != want || len(got) != statusLen {
		t.Errorf("flush 0:\n%x\n%s", got, want)
	}
	got = appendStatus(nil, 2, 1, at)
	want = "64" + "00000026" + "72" + "0000000000000002" + "0000000000000001" + "0000000000000000" + "00000000000f4242" + "00"
	if hex.EncodeToString(got) != want {
		t.Errorf("flush 1:\n%x\n%s", got, want)
	}
}

func TestIntervalStaysBelowTheTimeout(t *testing.T) {
	for _, c := range []struct{ wanted, timeout, want time.Duration }{
		{0, 0, 10 * time.Second}, {0, time.Minute, 10 * time.Second}, {0, 2 * time.Second, 500 * time.Millisecond},
		{time.Second, time.Minute, time.Second}, {time.Hour, time.Minute, 15 * time.Second},
	} {
		if got := interval(c.wanted, c.timeout); got != c.want {
			t.Errorf("interval(%v, %v) = %v, want %v", c.wanted, c.timeout, got, c.want)
		}
	}
}

// insertMany makes n transactions of one row each, of the numbers from first on.
func insertMany(t testing.TB, db *flotest.DB, first, n int) {
	t.Helper()
	db.Exec(t, fmt.Sprintf("DO $$ BEGIN FOR i IN %d..%d LOOP INSERT INTO t VALUES (i, repeat('x', i %% 500)); COMMIT; END LOOP; END $$", first, first+n-1))
}

// readUntil reads frames up to the commit behind the insert of row last, and gives them all.
func readUntil(t testing.TB, s *Stream, last int, wait time.Duration) (frames []string) {
	t.Helper()
	marker := []byte(fmt.Sprintf("t\x00\x00\x00%c%d", len(fmt.Sprint(last)), last))
	var commits bool
	for end := time.Now().Add(limit); ; {
		if time.Now().After(end) {
			t.Fatalf("row %d did not come; %d frames did", last, len(frames))
		}
		e, err := s.Next(wait)
		must(t, err)
		if e.Kind != Frame {
			continue
		}
		frames = append(frames, string(e.Data))
		commits = commits || e.Data[0] == 'I' && bytes.Contains(e.Data, marker)
		if commits && e.Data[0] == 'C' {
			return frames
		}
	}
}

func TestLazyReadingGivesTheSameFrames(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	db.Exec(t, "INSERT INTO t VALUES (0, repeat(md5(random()::text), 100000))") // 3.2 MB in one frame
	insertMany(t, db, 1, 20000)
	var want []string
	for _, mode := range []struct {
		name string
		lazy bool
		wait time.Duration
	}{{"eager", false, time.Second}, {"lazy", true, time.Second}, {"lazy polls", true, 0}} {
		s := start(t, t.Context(), c, p, point)
		s.SetLazy(mode.lazy)
		got := readUntil(t, s, 20000, mode.wait)
		if s.err != nil || len(got) < 60000 {
			t.Fatalf("%s: %d frames, %v", mode.name, len(got), s.err)
		}
		if want == nil {
			want = got
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: the frames differ", mode.name)
		}
		must(t, s.Close(t.Context()))
		if _, err := s.Next(0); !errors.Is(err, ErrStreamClosed) {
			t.Errorf("Next of a closed stream: %v", err)
		}
	}
	var last uint64
	for _, f := range want {
		if f[0] == 'C' {
			lsn := binary.BigEndian.Uint64([]byte(f[2:]))
			if lsn <= last {
				t.Fatalf("commit %x behind %x", lsn, last)
			}
			last = lsn
		}
	}
}

func TestIdleSourceIsConfirmedExactly(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE busy (id int)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	s := start(t, t.Context(), c, p, point)
	db.Exec(t, "INSERT INTO busy SELECT generate_series(1, 1000)") // not published
	goal, err := decode.ParseLSN(db.QueryString(t, "SELECT pg_current_wal_lsn()"))
	must(t, err)
	var at decode.LSN
	eventually(t, "a keepalive behind the unpublished insert", s, func() bool { at = s.Received(); return at >= goal })
	s.Confirm(at)
	s.Confirm(at - 1) // never back
	eventually(t, "the slot to be confirmed", s, func() bool {
		return db.QueryString(t, "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1", slotName(c)) == at.String()
	})
	if got := db.QueryString(t, "SELECT flush_lsn FROM pg_stat_replication WHERE application_name = 'flo test'"); got != flotest.Null {
		t.Errorf("flush stands at %s, want none: a shutdown would wait for it", got)
	}
	if s.Confirmed() != at {
		t.Errorf("Confirmed is %s, want %s", s.Confirmed(), at)
	}
	s.Confirm(at + 1<<40)
	if s.pending > s.Received() {
		t.Error("a position beyond what was received would be confirmed")
	}
}

func TestStalledOwnerThatTicksKeepsTheConnection(t *testing.T) {
	server := flotest.NewServer(t, flotest.WithSetting("wal_sender_timeout", "2s"))
	db := server.NewDB(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	db.Exec(t, "INSERT INTO t SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 20000) i") // more than the socket holds
	s := start(t, t.Context(), c, p, point)
	if s.StatusInterval() > 2*time.Second/3 {
		t.Fatalf("the feedback's interval is %v", s.StatusInterval())
	}
	ticker := time.NewTicker(s.StatusInterval() / 2)
	defer ticker.Stop()
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); {
		must(t, s.Tick(<-ticker.C))
	}
	if got := len(readUntil(t, s, 20000, time.Second)); got < 20000 {
		t.Errorf("%d frames after the stall", got)
	}
}

func TestFastShutdownUnderLoadDoesNotWait(t *testing.T) {
	server := flotest.NewServer(t)
	db := server.NewDB(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	s := start(t, t.Context(), c, p, point)
	s.SetLazy(true)
	load := make(chan error, 1)
	go func() {
		load <- db.TryExec(context.WithoutCancel(t.Context()), "DO $$ BEGIN FOR i IN 1..100000000 LOOP INSERT INTO t VALUES (i, 'x'); COMMIT; END LOOP; END $$")
	}()
	readUntil(t, s, 5000, time.Second)
	type stopped struct {
		took time.Duration
		err  error
	}
	done := make(chan stopped, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		took, err := server.Stop(ctx, flotest.Fast)
		done <- stopped{took, err}
	}()
	// Never a Confirm: the slot stays far behind.
	var got stopped
	var err error
	for end := time.Now().Add(limit); err == nil && time.Now().Before(end); {
		_, err = s.Next(time.Second)
	}
	if err == nil { // the server waits for us: let it go, or nothing ends
		must(t, server.Kill())
	}
	got = <-done
	if err == nil || got.err != nil || got.took > 15*time.Second {
		t.Fatalf("the server took %v to stop: %v", got.took, got.err)
	}
	if <-load == nil {
		t.Error("the load was over before the server stopped")
	}
	t.Logf("stopped in %v; the stream ended with: %v", got.took, err)
}

func TestContextEndsABlockedNext(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	ctx, cancel := context.WithCancel(t.Context())
	s := start(t, ctx, c, p, point)
	time.AfterFunc(100*time.Millisecond, cancel)
	began := time.Now()
	for {
		_, err := s.Next(time.Hour)
		if err == nil {
			continue
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Next under an ended context: %v", err)
		}
		break
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Next took %v to end", took)
	}
	must(t, s.Close(context.Background()))
	eventually(t, "the slot to be free", nil, func() bool {
		return db.QueryString(t, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", slotName(c)) == "f"
	})
}

func TestStartRefusals(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	system, err := c.Identify(t.Context())
	must(t, err)
	try := func(slot string, from decode.LSN) error {
		s, err := c.StartStream(t.Context(), StreamConfig{Slot: slot, Publications: p.Names, From: from, System: system})
		if err == nil {
			must(t, s.Close(t.Context()))
		}
		return err
	}
	if err := try("no_such_slot", point); !errors.Is(err, ErrSlotMissing) {
		t.Errorf("a missing slot: %v", err)
	}
	if err := try(slotName(c), point-1); !errors.Is(err, ErrSlotAhead) {
		t.Errorf("a position behind the slot's: %v", err)
	}
	db.Exec(t, "SELECT pg_create_logical_replication_slot('other_"+db.Name+"', 'test_decoding')")
	if err := try("other_"+db.Name, point+1<<30); !errors.Is(err, ErrSlotMismatch) {
		t.Errorf("another plugin's slot: %v", err)
	}
	s := start(t, t.Context(), c, p, point)
	_, err = s.Next(0)
	must(t, err)
	if err := try(slotName(c), point); !errors.Is(err, ErrSlotActive) {
		t.Errorf("a slot in use: %v", err)
	}
}

func TestLostSlotIsTyped(t *testing.T) {
	server := flotest.NewServer(t, flotest.WithSetting("max_slot_wal_keep_size", "1MB"), flotest.WithSetting("min_wal_size", "32MB"),
		flotest.WithSetting("max_wal_size", "32MB"))
	db := server.NewDB(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	for range 4 {
		db.Exec(t, "SELECT pg_switch_wal(); CREATE TABLE x (); DROP TABLE x")
	}
	db.Exec(t, "CHECKPOINT")
	info, err := c.Slot(t.Context(), connect(t, c), slotName(c))
	must(t, err)
	if !info.Lost() {
		t.Fatalf("the slot is not lost: %+v", info)
	}
	_, err = c.StartStream(t.Context(), StreamConfig{Slot: slotName(c), Publications: p.Names, From: point})
	if !errors.Is(err, ErrSlotLost) {
		t.Errorf("a lost slot: %v", err)
	}
}

func TestNextAllocatesNothing(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	db.Exec(t, "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 50000) i")
	s := start(t, t.Context(), c, p, point)
	for range 1000 {
		next(t, s)
	}
	if n := testing.AllocsPerRun(30000, func() {
		if _, err := s.Next(time.Second); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

func TestEndsThatPass(t *testing.T) {
	server := flotest.NewServer(t)
	db := server.NewDB(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	for _, end := range []struct {
		name string
		now  func()
	}{
		{"pg_terminate_backend", func() {
			db.Exec(t, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
		}},
		{"a crash of the server", func() { must(t, server.Kill()) }},
	} {
		s := start(t, t.Context(), c, p, point)
		_, err := s.Next(100 * time.Millisecond)
		must(t, err)
		end.now()
		for began := time.Now(); err == nil; {
			if time.Since(began) > limit {
				t.Fatalf("%s: the stream goes on", end.name)
			}
			_, err = s.Next(time.Second)
		}
		if !pgsession.Transient(err) {
			t.Errorf("%s is not transient: %v", end.name, err)
		}
		if _, again := s.Next(0); again != err {
			t.Errorf("%s: a later call gives %v", end.name, again)
		}
		must(t, s.Close(t.Context()))
	}
	must(t, server.Start(t.Context()))
	info, err := c.Slot(t.Context(), connect(t, c), slotName(c))
	must(t, err)
	if info.ConfirmedFlush > point {
		t.Errorf("nobody confirmed, and the slot stands at %s, behind %s", info.ConfirmedFlush, point)
	}
}
