package source

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/flotest"
)

// slots of the test's database.
func slots(t testing.TB, db *flotest.DB) string {
	t.Helper()
	return db.QueryString(t, "SELECT count(*) FROM pg_replication_slots WHERE database = $1", db.Name)
}

func TestSnapshotIsUsableElsewhere(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
	c := config(t, db.URL)
	for _, temporary := range []bool{false, true} {
		slot, err := c.CreateSlot(t.Context(), fmt.Sprintf("%s_%v", slotName(c), temporary), temporary, nil)
		must(t, err)
		db.Exec(t, "INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
		tx, err := connect(t, c).Begin(t.Context())
		must(t, err)
		_, err = tx.Exec(t.Context(), "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
		must(t, err)
		_, err = tx.Exec(t.Context(), "SET TRANSACTION SNAPSHOT '"+slot.Snapshot+"'")
		must(t, err)
		var seen, now int
		must(t, tx.QueryRow(t.Context(), "SELECT count(*) FROM public.t").Scan(&seen))
		must(t, tx.Rollback(t.Context()))
		must(t, connect(t, c).QueryRow(t.Context(), "SELECT count(*) FROM public.t").Scan(&now))
		if seen != now-1 || slot.Point == 0 {
			t.Errorf("the snapshot at %s sees %d rows, now there are %d", slot.Point, seen, now)
		}
		must(t, slot.Release(t.Context()))
		must(t, slot.Release(t.Context()))
	}
	eventually(t, "the temporary slot to go", nil, func() bool { return slots(t, db) == "1" })
}

func TestCreateSlotNamesWhatItWaitsFor(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int)")
	c := config(t, db.URL)
	old := db.Conn(t)
	_, err := old.Exec(t.Context(), "SET application_name = 'the old one'; BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a; INSERT INTO t VALUES (2)")
	must(t, err)
	db.Exec(t, "BEGIN; INSERT INTO t VALUES (3); PREPARE TRANSACTION 'prepared "+db.Name+"'")
	defer func() { db.Exec(t, "ROLLBACK PREPARED 'prepared "+db.Name+"'") }()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	calls := make(chan []OldTransaction, 100)
	var first time.Duration
	_, err = c.CreateSlot(ctx, slotName(c), false, func(o []OldTransaction) {
		if first == 0 {
			first = time.Since(began)
		}
		calls <- o
		if len(calls) == 2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled creation: %v", err)
	}
	if took := time.Since(began); took > 20*time.Second || first > 10*time.Second {
		t.Errorf("first call after %v, cancelled after %v", first, took)
	}
	if got := slots(t, db); got != "0" {
		t.Errorf("%s slots are left", got)
	}
	var text []string
	blocking := 0
	for _, o := range <-calls {
		text = append(text, o.String())
		if o.Blocking {
			blocking++
		}
	}
	all := strings.Join(text, "\n")
	for _, want := range []string{"the old one", "idle in transaction", "prepared " + db.Name, fmt.Sprintf("pid %d,", old.PgConn().PID())} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not named in:\n%s", want, all)
		}
	}
	if len(text) != 2 || blocking != 1 {
		t.Errorf("%d transactions, %d of them blocking:\n%s", len(text), blocking, all)
	}
}

func TestCreateSlotGoesOnWhenTheOldOneEnds(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int)")
	c := config(t, db.URL)
	old := db.Conn(t)
	_, err := old.Exec(t.Context(), "BEGIN; INSERT INTO t VALUES (1)")
	must(t, err)
	ended := false
	slot, err := c.CreateSlot(t.Context(), slotName(c), false, func([]OldTransaction) {
		if !ended {
			ended = true
			if _, err := old.Exec(t.Context(), "COMMIT"); err != nil {
				t.Error(err)
			}
		}
	})
	must(t, err)
	must(t, slot.Release(t.Context()))
	if !ended {
		t.Error("nothing was waited for")
	}
	if _, err := c.CreateSlot(t.Context(), slotName(c), false, nil); !errors.Is(err, ErrSlotExists) {
		t.Errorf("a second slot of the name: %v", err)
	}
	info, err := c.Slot(t.Context(), connect(t, c), slotName(c))
	must(t, err)
	if info.Plugin != plugin || info.Database != db.Name || info.ConfirmedFlush != slot.Point || info.WALStatus != "reserved" || info.Lost() {
		t.Errorf("%+v, made at %s", info, slot.Point)
	}
	must(t, c.DropSlot(t.Context(), slotName(c)))
	must(t, c.DropSlot(t.Context(), slotName(c)))
	if _, err := c.Slot(t.Context(), connect(t, c), slotName(c)); !errors.Is(err, ErrSlotMissing) {
		t.Errorf("a dropped slot: %v", err)
	}
}

func TestDropSlotWaitsForItsWalsender(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY)")
	c := config(t, db.URL)
	p, point := publish(t, c, "t")
	s := start(t, t.Context(), c, p, point)
	_, err := s.Next(0)
	must(t, err)
	dropped := make(chan error, 1)
	go func() { dropped <- c.DropSlot(context.Background(), slotName(c)) }()
	for range 20 {
		_, err := s.Next(20 * time.Millisecond)
		must(t, err)
	}
	must(t, s.Close(t.Context()))
	must(t, <-dropped)
	if got := slots(t, db); got != "0" {
		t.Errorf("%s slots are left", got)
	}
}

func TestIdentify(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "ALTER DATABASE "+db.Name+" SET wal_sender_timeout = '7s'")
	c := config(t, db.URL)
	s, err := c.Identify(t.Context())
	must(t, err)
	id := db.QueryString(t, "SELECT system_identifier FROM pg_control_system()")
	if s.ID != id || s.Database != db.Name || s.Timeline != 1 || s.Pos == 0 || s.Version < 100000 || s.InRecovery ||
		s.WALLevel != "logical" || s.WalSenderTimeout != 7*time.Second {
		t.Errorf("%+v, system %s", s, id)
	}
	if at, err := c.TimelineSwitch(t.Context(), 1); err != nil || at != NoSwitch {
		t.Errorf("the server's own timeline: %s, %v", at, err)
	}
	if _, err := c.TimelineSwitch(t.Context(), 2); !errors.Is(err, ErrTimeline) {
		t.Errorf("a timeline of the future: %v", err)
	}
}

func TestSwitchPoint(t *testing.T) {
	history := "1\t0/3000158\tno recovery target specified\n\n# a comment\n2\t16/B374D848\tbefore 2026\n"
	if at, err := switchPoint(history, 2); err != nil || at.String() != "16/B374D848" {
		t.Errorf("%s, %v", at, err)
	}
	if _, err := switchPoint(history, 3); !errors.Is(err, ErrTimeline) {
		t.Errorf("an unknown timeline: %v", err)
	}
	if _, err := switchPoint("x\ty\n", 1); err == nil {
		t.Error("what is no history passes")
	}
}
