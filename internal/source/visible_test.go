package source

import (
	"testing"

	"github.com/pgflo/flo/flotest"
)

func TestVisible(t *testing.T) {
	for _, c := range []struct {
		snapshot string
		xid      uint32
		want     bool
	}{
		{"100:100:", 99, true},
		{"100:100:", 100, false},
		{"100:105:100,103", 101, true},
		{"100:105:100,103", 103, false},
		{"100:105:100,103", 105, false},
		{"4294967290:4294967301:4294967290", 4294967295, true},  // the epoch begins between the two
		{"4294967290:4294967301:4294967290", 4294967290, false}, //
		{"4294967290:4294967301:4294967290,4294967299", 3, false},
		{"4294967290:4294967301:4294967290,4294967299", 4, true},
		{"4294967290:4294967301:4294967290", 5, false},
		{"8589934600:8589934600:", 4294967295, true},
	} {
		if got, err := visible(c.snapshot, c.xid); err != nil || got != c.want {
			t.Errorf("visible(%q, %d) = %v, %v", c.snapshot, c.xid, got, err)
		}
	}
	for _, bad := range []string{"", "1:2", "a:2:", "1:b:", "1:9:c"} {
		if _, err := visible(bad, 5); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// A session without a name is nobody's standby.
func TestASessionWithoutANameHoldsNoCommits(t *testing.T) {
	db := flotest.Postgres(t)
	conn := db.Conn(t)
	for _, name := range []string{"", "flo shop"} {
		if _, err := conn.Exec(t.Context(), "SELECT set_config('application_name', $1, false)", name); err != nil {
			t.Fatal(err)
		}
		if held, err := holdsCommits(t.Context(), conn, "none"); err != nil || held {
			t.Errorf("%q: %v, %v", name, held, err)
		}
	}
}
