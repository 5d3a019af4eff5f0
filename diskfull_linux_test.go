package flo_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// smallDisk mounts a file system of so many bytes. It skips the test where mounting is not allowed.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	base, err := os.MkdirTemp("", "flo-disk-") // the test's own folder is closed to the server's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	disk := filepath.Join(base, "disk")
	for _, err := range []error{os.Chmod(base, 0o711), os.Mkdir(disk, 0o711)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("flotest", disk, "tmpfs", syscall.MS_NODEV|syscall.MS_NOSUID, "mode=0711,size="+size); err != nil {
		t.Skipf("a full disk takes a file system of its own, and mounting one isn't allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return disk
}

// fillUp writes a file until the disk has no room left.
func fillUp(t *testing.T, disk string) (free func()) {
	t.Helper()
	path := filepath.Join(disk, "ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	f.Close()
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// The destination's disk is full, in the copy and in the stream: flo says so and tries again, loses nothing and repeats
// nothing, and goes on by itself once there is room.
func TestADestinationWithAFullDiskIsWaitedFor(t *testing.T) {
	long(t)
	ctx := testContext(t)
	disk := smallDisk(t, "48m")
	server := flotest.NewServer(t)
	p := newPipeline(t, smallTable)
	p.dst = server.NewDB(t)
	space := filepath.Join(disk, "space")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	like, err := os.Stat(filepath.Join(server.DataDir(), "PG_VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	if err := keepOwner(like, space); err != nil {
		t.Fatal(err)
	}
	p.dst.Exec(t, `CREATE TABLESPACE small LOCATION '`+space+`'`)
	p.dst.Exec(t, smallTable+` TABLESPACE small; ALTER TABLE t ALTER v SET STORAGE EXTERNAL`)
	p.src.Exec(t, `ALTER TABLE t ALTER v SET STORAGE EXTERNAL; INSERT INTO t SELECT i, repeat('c', 10000) FROM generate_series(1, 500) i`)
	full := func() {
		t.Helper()
		eventually(t, ctx, "the worker says that the disk is full", func() bool {
			st := p.f.Status().Workers[0]
			return st.Phase == flo.PhaseRetrying && st.Failing.Tries >= 2 && strings.Contains(st.LastError, "53100")
		})
	}
	free := fillUp(t, disk)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	full()
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "0" {
		t.Errorf("%s copied rows on a full disk", n)
	}
	free()
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()

	free = fillUp(t, disk)
	p.src.Exec(t, `BEGIN; INSERT INTO t SELECT i, repeat('s', 10000) FROM generate_series(1001, 1500) i; UPDATE t SET v = repeat('u', 9000) WHERE id % 5 = 0; DELETE FROM t WHERE id % 7 = 0; COMMIT`)
	p.src.Exec(t, `UPDATE t SET id = -id WHERE id % 11 = 0; INSERT INTO t VALUES (-1, 'last')`)
	full()
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t WHERE id > 1000 OR id < 0`); n != "0" {
		t.Errorf("%s rows of a transaction that has no room", n)
	}
	r.running()
	free()
	p.catchUp(ctx)
	p.equal(ctx)
	if st := p.f.Status().Workers[0]; st.LastError != "" || st.Failing.Tries != 0 {
		t.Errorf("afterwards: %+v", st)
	}
	r.running()
}

// The disk that is full holds the whole destination, its WAL too, so that the server itself may end: its commits
// count, and flo goes on once it is back.
func TestADestinationThatEndsOnAFullDiskIsWaitedFor(t *testing.T) {
	long(t)
	ctx := testContext(t)
	disk := smallDisk(t, "192m")
	server := flotest.NewServer(t, flotest.WithData(filepath.Join(disk, "data")), flotest.WithInitdbArgs("--wal-segsize=1"),
		flotest.WithSetting("min_wal_size", "2MB"), flotest.WithSetting("max_wal_size", "8MB"))
	p := newPipeline(t, smallTable)
	p.dst = server.NewDB(t)
	p.dst.Exec(t, smallTable)
	copied(t, ctx, p)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	free := fillUp(t, disk)
	stop := p.writeBeside(ctx, `INSERT INTO t SELECT 1000 * $1::bigint + i, repeat(md5(i::text), 20) FROM generate_series(1, 200) i`,
		`UPDATE t SET v = v || '.' WHERE id % 13 = $1::bigint % 13 AND id >= 1000`, `DELETE FROM t WHERE id < 1000 * ($1::bigint - 40)`)
	eventually(t, ctx, "the worker finds no room, or no server", func() bool {
		r.running()
		st := p.f.Status().Workers[0]
		return st.Phase == flo.PhaseRetrying && st.Failing.Tries >= 2
	})
	stop()
	free()
	// Unless it was only a table that had no room, the server has ended; where it has not, this is one more fault.
	if _, err := server.Stop(ctx, flotest.Immediate); err != nil && !errors.Is(err, flotest.ErrStopped) {
		t.Fatal(err)
	}
	if err := server.Start(ctx); err != nil {
		t.Fatal(err)
	}
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()
}
