//go:build unix

package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/pgflo/flo"
)

// On a link to NATS that takes several times the lease for what may be under way, the copy and large transactions
// pass, and neither half loses its lease: what is under way is bounded by time, too, and where flo opens the
// connection itself the leases have one of their own. A connection that the replicator is given does as well.
func TestNoLeaseIsLostBehindALoadedNarrowLink(t *testing.T) {
	if testing.Short() {
		t.Skip("9 MB at 500 kB/s")
	}
	t.Parallel()
	for _, given := range []bool{false, true} {
		t.Run(fmt.Sprintf("given=%t", given), func(t *testing.T) {
			t.Parallel()
			const rate, lease, rows = 500e3, 4 * time.Second, 3_000 // of 1 kB
			r := newRig(t, 3*time.Minute, "", "")
			r.localNATS()
			r.both(`CREATE TABLE wide (id int PRIMARY KEY, v text)`)
			fill := func(from int) {
				t.Helper()
				must(t, execute(r.ctx, r.source, fmt.Sprintf(`INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series(%d, %d) i`, from, from+rows-1)))
			}
			fill(1)
			to, narrow := newThrottle(t, r.nats, rate)
			repl := r.replicator(childConfig{Lease: lease, NATS: narrow, Given: given})
			workerNATS := r.nats
			if !given { // what a worker has fetched ahead is not bounded by time
				_, workerNATS = newThrottle(t, r.nats, rate)
			}
			pg := r.worker(childConfig{Lease: lease, NATS: workerNATS, Given: given})
			r.streams(repl)
			fill(1 + rows)
			fill(1 + 2*rows)
			r.catchUp()
			for _, m := range []*member{repl, pg} {
				if s := m.process().last(); s.Retries > 0 || s.Phase != flo.PhaseStreaming {
					t.Errorf("%s was interrupted %d times: %s", m.cfg.Name, s.Retries, s.LastError)
				}
			}
			to.set(weather{})
			r.equal()
			r.stopAll()
		})
	}
}
