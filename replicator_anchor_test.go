package flo

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/pgflo/flo/internal/wire"
)

// A message may end within a transaction, behind the end of another one: its time is that of the one it ends
// within, or the server that sends that one again is taken for another.
func TestTheTailsTimeIsThatOfItsLastTransaction(t *testing.T) {
	epoch := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
	begin := func(lsn, micros uint64) []byte {
		b := binary.BigEndian.AppendUint64([]byte{'B'}, lsn)
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, micros), 7)
	}
	commit := func(lsn, micros uint64) []byte {
		b := binary.BigEndian.AppendUint64([]byte{'C', 0}, lsn)
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, lsn+8), micros)
	}
	for _, c := range []struct {
		name   string
		frames [][]byte
		want   time.Time
	}{
		{"whole transactions", [][]byte{begin(100, 5), commit(100, 5), begin(200, 9), commit(200, 9)}, epoch.Add(9 * time.Microsecond)},
		{"the last one goes on", [][]byte{begin(100, 5), commit(100, 5), begin(200, 9)}, epoch.Add(9 * time.Microsecond)},
		{"the end of one", [][]byte{commit(100, 5)}, epoch.Add(5 * time.Microsecond)},
		{"neither", nil, time.Time{}},
	} {
		var body []byte
		for _, f := range c.frames {
			body = wire.AppendFrame(body, f)
		}
		if got, err := commitTime(body); err != nil || !got.Equal(c.want) {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}
