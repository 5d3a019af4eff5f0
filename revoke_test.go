package flo_test

import (
	"testing"

	"github.com/pgflo/flo"
)

// SELECT is taken from flo's role in the middle of the copy (of the table that is being read PostgreSQL doesn't notice
// it, rights are looked at when a command begins): Run ends with an error that says what to grant, and
// after that it goes on, with what was whole before and with what changed meanwhile.
func TestSelectRevokedInMidCopyStopsAndGoesOnOnceItIsGranted(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, twoLarge)
	p.src.Exec(t, fillTwo)
	p.src.Exec(t, `CREATE PUBLICATION shop_pub FOR TABLE first, second, small`)
	source, fill := role(t, p.src, "reader", "REPLICATION", `GRANT SELECT ON first, second, small TO $role`)
	opts := []flo.Option{flo.WithSource(source), flo.WithPublication("shop_pub")}
	_, r := holdBack(t, ctx, p, opts...)
	p.src.Exec(t, fill(`REVOKE SELECT ON second, small FROM $role`))
	p.src.Exec(t, `UPDATE first SET v = 'beside' WHERE id % 100 = 0; DELETE FROM second WHERE id % 100 = 1; INSERT INTO second VALUES (-1, 'beside')`)
	w := launch(t, ctx, p.worker(append(opts, flo.WithSink(p.sink()))...)) // it makes room, so that the copy goes on
	wantStop(t, r.ends(ctx), flo.ErrPrivilege, `"small"`, "GRANT SELECT ON TABLE", `"reader_`+p.src.Name+`"`)
	w.running()
	// Nobody has to ask again before the role is granted it: the next start says so at once.
	wantStop(t, launch(t, ctx, p.replicator(opts...)).ends(ctx), flo.ErrPrivilege, "GRANT SELECT ON TABLE", `"second"`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `UPDATE first SET v = 'between' WHERE id % 100 = 2; UPDATE second SET id = -id WHERE id % 100 = 3; INSERT INTO second VALUES (-2, 'between')`)
	p.src.Exec(t, fill(`GRANT SELECT ON second, small TO $role`))
	p.start(ctx, append(opts, flo.WithSink(p.sink()))...)
	p.src.Exec(t, `UPDATE second SET v = 'behind' WHERE id % 100 = 4; DELETE FROM small WHERE id < 10`)
	p.catchUp(ctx)
	p.equal(ctx)
	if got := p.attempts()["first"]; got != "1" {
		t.Errorf("the table that was whole was copied by attempt %s, want 1", got)
	}
}

// With both halves in one Run, and flo's own publication, the same.
func TestSelectRevokedWhileOneRunCopiesAndAppliesStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, twoLarge)
	p.src.Exec(t, fillTwo)
	source, fill := role(t, p.src, "owner", "REPLICATION", `GRANT CREATE ON DATABASE $db TO $role; GRANT CREATE ON SCHEMA public TO $role`,
		`ALTER TABLE first OWNER TO $role; ALTER TABLE second OWNER TO $role; ALTER TABLE small OWNER TO $role`)
	opts := []flo.Option{flo.WithSource(source), flo.WithCopyConnections(1), flo.WithStreamMaxBytes(32 << 20)}
	lock := p.dst.Conn(t) // the worker waits, until the stream is full and the copy waits too
	if _, err := lock.Exec(ctx, `BEGIN; LOCK TABLE first IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	r := p.launch(ctx, append(opts, flo.WithSink(p.sink()))...)
	s := p.madeStream(ctx)
	eventually(t, ctx, "the copy is held back", func() bool {
		r.running()
		info, err := s.Info(ctx)
		return err == nil && info.State.Bytes > 24<<20
	})
	p.src.Exec(t, fill(`REVOKE SELECT ON second, small FROM $role`)) // an owner's right may be revoked too
	if _, err := lock.Exec(ctx, `COMMIT`); err != nil {
		t.Fatal(err)
	}
	wantStop(t, r.ends(ctx), flo.ErrPrivilege, `"small"`, "GRANT SELECT ON TABLE")
	p.src.Exec(t, `UPDATE second SET v = 'between' WHERE id % 100 = 2`)
	p.src.Exec(t, fill(`GRANT SELECT ON second, small TO $role`))
	p.start(ctx, append(opts, flo.WithSink(p.sink()))...)
	p.catchUp(ctx)
	p.equal(ctx)
}
