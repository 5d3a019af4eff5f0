package decode

// Sizes of an Arena's slabs, in elements, and how many slabs of each kind survive a Reset: about
// 10 MB in all, enough for a batch of 10,000 rows of 10 columns.
const (
	changesPerSlab = 256
	valuesPerSlab  = 2048 // above PostgreSQL's limit of 1600 columns
	bytesPerSlab   = 64 << 10

	keptChangeSlabs = 64
	keptValueSlabs  = 64
	keptByteSlabs   = 32
)

// Arena holds the changes and values of one batch in slabs that the next batch uses again. Nothing
// that came out of it may be used after Reset: Clone what is kept. It is for one goroutine at a time.
// A nil *Arena is valid, and takes everything from the heap.
type Arena struct {
	changes slabs[Change]
	copies  slabs[CopyID]
	values  slabs[Value]
	bytes   slabs[byte]
}

// NewArena gives an empty arena.
func NewArena() *Arena {
	return &Arena{
		changes: slabs[Change]{size: changesPerSlab, keep: keptChangeSlabs},
		copies:  slabs[CopyID]{size: changesPerSlab, keep: keptChangeSlabs},
		values:  slabs[Value]{size: valuesPerSlab, keep: keptValueSlabs},
		bytes:   slabs[byte]{size: bytesPerSlab, keep: keptByteSlabs},
	}
}

// Reset takes everything back. It lets go of the frames that values pointed into, and of slabs above
// a fixed number, so that one huge batch does not hold its memory for ever.
func (a *Arena) Reset() {
	if a == nil {
		return
	}
	a.changes.reset()
	a.copies.reset()
	a.values.reset()
	a.bytes.reset()
}

// Change gives a zero change.
func (a *Arena) Change() *Change {
	if a == nil {
		return new(Change)
	}
	return &a.changes.take(1)[0]
}

// CopiedRow gives the insert that a copied row is: row of relation r, known by id.
func (a *Arena) CopiedRow(r *Relation, id CopyID, row Row) *Change {
	c := a.Change()
	if a == nil {
		c.Copy = new(CopyID)
	} else {
		c.Copy = &a.copies.take(1)[0]
	}
	*c.Copy = id
	c.Op, c.Relation, c.New = OpInsert, r, row
	return c
}

// Row gives n absent values; never nil.
func (a *Arena) Row(n int) Row {
	if a == nil {
		return make(Row, n)
	}
	return a.values.take(n)
}

// Bytes gives n zero bytes; never nil.
func (a *Arena) Bytes(n int) []byte {
	if a == nil {
		return make([]byte, n)
	}
	return a.bytes.take(n)
}

// slabs hands out runs of zero elements from slabs of one size.
type slabs[T any] struct {
	size, keep int
	list       [][]T
	cur, used  int // of list[cur], the first used elements are taken
}

func (s *slabs[T]) take(n int) []T {
	if n > s.size/2 {
		return make([]T, n) // rare; not kept
	}
	if len(s.list) == 0 || s.used+n > s.size {
		s.next()
	}
	t := s.list[s.cur][s.used : s.used+n : s.used+n]
	s.used += n
	return t
}

func (s *slabs[T]) next() {
	if len(s.list) > 0 {
		s.cur++
	}
	if s.cur == len(s.list) {
		s.list = append(s.list, make([]T, s.size))
	}
	s.used = 0
}

func (s *slabs[T]) reset() {
	if len(s.list) == 0 {
		return
	}
	if len(s.list) > s.keep {
		clear(s.list[s.keep:])
		s.list = s.list[:s.keep]
	}
	for i := range s.list[:min(s.cur+1, len(s.list))] {
		if i == s.cur {
			clear(s.list[i][:s.used])
		} else {
			clear(s.list[i])
		}
	}
	s.cur, s.used = 0, 0
}
