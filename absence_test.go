package flo_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgflo/flo"
)

// While the group's NATS server is away another one may be given its address, in which the group has never been.
func TestAnEmptyNATSAtTheSameAddressIsNotALostStream(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	right := p.withStore()
	rep := p.replicator()
	r := launch(t, ctx, rep)
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	eventually(t, ctx, "the first row", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "1" })
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	retries := rep.Status().Retries
	right.close()
	p.endWalsender(ctx) // so that a session begins with the other server
	eventually(t, ctx, "the session ends", func() bool { return rep.Status().Retries > retries })

	other := &store{t: t, dir: filepath.Join(t.TempDir(), "other"), addr: right.addr}
	other.start()
	eventually(t, ctx, "the replicator says that nothing is there", func() bool {
		return strings.Contains(rep.Status().LastError, "another server answers")
	})
	r.running()
	other.close()
	right.start()
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	eventually(t, ctx, "the second row", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "2" })
	p.equal(ctx)
	r.running()
}
