package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

func TestNewReportsAllBadOptionsAndNoPassword(t *testing.T) {
	_, err := New("postgres://u@localhost/d", WithConnections(0), WithSchema(""), WithLogger(nil))
	if !errors.Is(err, ErrInvalidOption) {
		t.Fatal(err)
	}
	for _, part := range []string{"WithConnections", "WithSchema", "WithLogger"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not name %s", err, part)
		}
	}
	for _, u := range []string{
		"postgres://u:s3cret@localhost:x/d", "postgres://u:s3cret@localhost/d?sslmode=no", "postgres://u:%zzs3cret@h/d",
		"host=h password=s3cret port=x", "host=h password = s3cret port=99999999", "host=h password='a s3cret' port=x",
	} {
		_, err := New(u)
		if !errors.Is(err, ErrInvalidOption) || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "s3cret") {
			t.Errorf("%s: %v", u, err)
		}
		var parse *pgconn.ParseConfigError
		if errors.As(err, &parse) {
			t.Errorf("%s: the error carries the whole string", u)
		}
	}
	if _, err := NewConfig(nil); !errors.Is(err, ErrInvalidOption) {
		t.Error(err)
	}
}

func TestUnreachableServerIsTransientAndKeepsThePassword(t *testing.T) {
	s := newSink(t, "postgres://u:s3cret@127.0.0.1:1/d")
	_, err := s.Open(testContext(t), sink.Start{Group: "g", Worker: "w"})
	if err == nil || sink.IsPermanent(err) || strings.Contains(err.Error(), "s3cret") {
		t.Fatal(err)
	}
}

func TestPasswordCallbackIsAskedAtConnect(t *testing.T) {
	db := flotest.Postgres(t)
	asked := 0
	s := newSink(t, db.URL, WithPassword(func(context.Context) (string, error) {
		asked++
		u, err := url.Parse(db.URL)
		if err != nil {
			return "", err
		}
		pw, _ := u.User.Password()
		return pw, nil
	}))
	if _, err := s.Open(testContext(t), sink.Start{Group: "g", Worker: "w"}); err != nil || asked != 1 {
		t.Fatalf("asked %d times: %v", asked, err)
	}
}

// A role without rights is told what it lacks; with SetupSQL run by somebody else it works.
func TestMissingPrivilegesAreNamed(t *testing.T) {
	flotest.RequireOwnServer(t)
	db := flotest.Postgres(t)
	role := "poor_" + db.Name
	db.Exec(t, `CREATE ROLE "`+role+`" LOGIN PASSWORD 'pw'; REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE TABLE t (k int PRIMARY KEY); GRANT ALL ON t TO "`+role+`"`)
	t.Cleanup(func() { db.Exec(t, `DROP OWNED BY "`+role+`"; DROP ROLE "`+role+`"`) })
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "pw")
	st := sink.Start{Group: "g", Worker: "w", Epoch: 1}
	s := newSink(t, u.String())
	if _, err := s.Open(testContext(t), st); !errors.Is(err, ErrPrivilege) || !sink.IsPermanent(err) || !strings.Contains(err.Error(), "SetupSQL") {
		t.Fatalf("Open without the schema: %v", err)
	}
	db.Exec(t, s.SetupSQL()+`GRANT USAGE ON SCHEMA flo TO "`+role+`"; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA flo TO "`+role+`"`)
	if _, err := s.Open(testContext(t), st); err != nil {
		t.Fatal(err)
	}
	s = newSink(t, u.String(), WithReplicaRole())
	if _, err := s.Open(testContext(t), st); !errors.Is(err, ErrPrivilege) || !sink.IsPermanent(err) || !strings.Contains(err.Error(), "session_replication_role") {
		t.Fatalf("Open with the replica role: %v", err)
	}
}

// Several workers may make the tables at once.
func TestOpenOfManyAtOnce(t *testing.T) {
	db := flotest.Postgres(t)
	errs := make(chan error)
	const n = 6
	for i := range n {
		s := newSink(t, db.URL)
		go func() {
			_, err := s.Open(testContext(t), sink.Start{Group: "g", Worker: numberText(i), Epoch: 1})
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestCloseTwiceAndUseAfterIt(t *testing.T) {
	r := newRig(t, "CREATE TABLE t (k int)")
	ctx := testContext(t)
	if err := errors.Join(r.sink.Close(ctx), r.sink.Close(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := r.try(insert(rel("t", "k"), "1")); !errors.Is(err, ErrNotOpen) {
		t.Fatal(err)
	}
	if err := r.sink.BeginTable(ctx, copyTable(copyRel(), 1)); err == nil {
		t.Fatal("BeginTable after Close")
	}
	if _, err := r.sink.Open(ctx, r.st); !sink.IsPermanent(err) {
		t.Fatalf("Open after Close: %v", err)
	}
}
