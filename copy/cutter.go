package flocopy

import "bytes"

// cutter is the io.Writer that COPY's bytes go to. It cuts them into chunks at row ends. In COPY's
// text format 0x0A stands at the end of a row and nowhere else: within a value it is written \n.
//
// PostgreSQL puts one row into one CopyData message, but the protocol doesn't promise it, so rows may
// be spread over Writes in any way.
// https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY
type cutter struct {
	limit int // of a chunk's rows in bytes, unless it is a single row
	room  int // bytes left free before the rows
	emit  func(row, rows uint64, data []byte) error

	buf   []byte // room, whole rows, then the beginning of one
	whole int    // how much of buf is room and whole rows
	rows  uint64 // in buf
	first uint64 // number of buf's first row
}

// Write implements io.Writer.
func (c *cutter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n') + 1
		part := p[:end]
		if end == 0 {
			part = p
		}
		if c.rows > 0 && len(c.buf)-c.room+len(part) > c.limit {
			if err := c.flush(); err != nil {
				return n - len(p), err
			}
		}
		c.append(part)
		if end > 0 {
			c.whole = len(c.buf)
			c.rows++
		}
		p = p[len(part):]
	}
	return n, nil
}

// append grows the buffer to a whole chunk at once, or to just what a larger row needs: growing step
// by step would copy a huge row several times over.
func (c *cutter) append(part []byte) {
	held := max(len(c.buf), c.room)
	need := held + len(part)
	if need > cap(c.buf) {
		size := c.limit + c.room
		if need > size {
			size = need
			if len(c.buf) > 0 { // a row in several pieces: don't copy it once a piece
				size += need / 4
			}
		}
		if c.room > 0 { // for what its receiver puts between the pieces of a large chunk
			size += need >> roomShare
		}
		grown := make([]byte, held, size)
		copy(grown, c.buf)
		c.buf = grown
	}
	c.buf = append(c.buf[:held], part...)
}

// roomShare: a chunk with room before it has a 64th of its size free behind it, too.
const roomShare = 6

// flush emits the whole rows. A buffer that is at least half full is given away, otherwise its rows
// are copied, so that the chunks of small tables don't pin a large buffer each.
func (c *cutter) flush() error {
	if c.rows == 0 {
		return nil
	}
	data, tail := c.buf[:c.whole], c.buf[c.whole:]
	if len(data) >= cap(c.buf)/2 {
		c.buf = nil
		if len(tail) > 0 {
			c.append(tail)
		}
	} else {
		data = bytes.Clone(data)
		c.buf = append(c.buf[:c.room], tail...)
	}
	first, rows := c.first, c.rows
	c.first += rows
	c.whole, c.rows = 0, 0
	return c.emit(first, rows, data)
}

// left is how many bytes of an unfinished row there are.
func (c *cutter) left() int { return max(0, len(c.buf)-c.room) }

// reset prepares for the next range, and keeps the buffer.
func (c *cutter) reset() {
	c.buf = c.buf[:0]
	c.whole, c.rows, c.first = 0, 0, 0
	if cap(c.buf) > 2*(c.limit+c.room) {
		c.buf = nil // grown for a huge row
	}
}
