package decode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/jackc/pglogrepl"
)

// The messages around streamed transactions mean what pglogrepl reads in them.
func TestStreamedMessagesAreReadAsPglogreplReadsThem(t *testing.T) {
	u32 := func(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
	u64 := func(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
	oracle := func(frame []byte, inStream bool) pglogrepl.Message {
		t.Helper()
		m, err := pglogrepl.ParseV2(frame, inStream)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	frame := append(u32([]byte{'S'}, 731), 1)
	start, err := ParseStreamStart(frame)
	if want := oracle(frame, false).(*pglogrepl.StreamStartMessageV2); err != nil || start.XID != want.Xid || start.First != (want.FirstSegment == 1) {
		t.Errorf("%+v, want %+v: %v", start, want, err)
	}
	frame = u64(u64(u64(append(u32([]byte{'c'}, 731), 0), 0x1_00000010), 0x1_00000040), 123_456_789)
	commit, err := ParseStreamCommit(frame)
	if want := oracle(frame, false).(*pglogrepl.StreamCommitMessageV2); err != nil || commit.XID != want.Xid || commit.CommitLSN != LSN(want.CommitLSN) ||
		commit.EndLSN != LSN(want.TransactionEndLSN) || !commit.CommitTime.Equal(want.CommitTime) {
		t.Errorf("%+v, want %+v: %v", commit, want, err)
	}
	frame = u32(u32([]byte{'A'}, 731), 733)
	abort, err := ParseStreamAbort(frame)
	if want := oracle(frame, false).(*pglogrepl.StreamAbortMessageV2); err != nil || abort.XID != want.Xid || abort.Sub != want.SubXid {
		t.Errorf("%+v, want %+v: %v", abort, want, err)
	}
	rel := &Relation{OID: 16384, Name: "t", Schema: catalogSchema, Identity: IdentityDefault}
	plain := AppendRelation(nil, rel)
	frame = append(u32([]byte{'R'}, 733), plain[1:]...)
	xid, kind, rest, err := TakeXID(frame)
	if want := oracle(frame, true).(*pglogrepl.RelationMessageV2); err != nil || xid != want.Xid || kind != 'R' || !bytes.Equal(rest, plain[1:]) {
		t.Errorf("%d %q: %v", xid, kind, err)
	}
	if oid, name, err := RelationName(plain); err != nil || oid != rel.OID || name != rel.Qualified() {
		t.Errorf("%d %s: %v", oid, name, err)
	}
}

func TestCutStreamedMessagesAreErrors(t *testing.T) {
	for _, frame := range [][]byte{nil, {'S'}, {'S', 0, 0, 0, 1}, {'c', 0, 0, 0, 1, 0}, {'A', 0, 0, 0, 1}, {'A', 0, 0, 0, 1, 0, 0, 0, 1, 9}, {'R', 0, 0, 0, 1, 's', 0, 't'}} {
		_, err1 := ParseStreamStart(frame)
		_, err2 := ParseStreamCommit(frame)
		_, err3 := ParseStreamAbort(frame)
		_, _, err4 := RelationName(frame)
		for _, err := range []error{err1, err2, err3, err4} {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%q: %v", frame, err)
			}
		}
	}
	if _, _, _, err := TakeXID([]byte{'I', 0, 0, 0}); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}
