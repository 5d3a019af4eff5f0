package source

import (
	"encoding/binary"
	"time"

	"github.com/pgflo/flo/decode"
)

// statusLen is the length of a standby status update as a CopyData message: type byte, length, and 34
// bytes of payload. https://www.postgresql.org/docs/current/protocol-replication.html
const statusLen = 1 + 4 + 34

// appendStatus encodes a standby status update. A flush of 0 is InvalidXLogRecPtr and stays 0 on the
// wire: it leaves the slot where it is, and makes a shutting-down server wait for write alone
// (ProcessStandbyReplyMessage and WalSndDone in src/backend/replication/walsender.c).
func appendStatus(dst []byte, write, flush decode.LSN, now time.Time) []byte {
	dst = append(dst, 'd')
	dst = binary.BigEndian.AppendUint32(dst, statusLen-1)
	dst = append(dst, 'r')
	dst = binary.BigEndian.AppendUint64(dst, uint64(write))
	dst = binary.BigEndian.AppendUint64(dst, uint64(flush))
	dst = binary.BigEndian.AppendUint64(dst, 0) // apply
	dst = binary.BigEndian.AppendUint64(dst, uint64(now.UnixMicro()-epochMicros))
	return append(dst, 0) // no reply wanted
}

// epochMicros is PostgreSQL's epoch, 2000-01-01 UTC, in microseconds of Unix time.
const epochMicros = 946_684_800_000_000
