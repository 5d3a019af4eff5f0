package postgres

import (
	"encoding/binary"
	"slices"

	"github.com/pgflo/flo/decode"
)

// maxReducedRow is how many bytes a row may have that goes by a set. Larger ones are worth a statement
// of their own, and a set of them would be held in memory several times.
const maxReducedRow = 256 << 10

// slot is what a batch does to one key: to the row that had it before the batch, called the first row,
// and to what has it afterwards.
type slot struct {
	state  slotState
	change int // the first one about it
	need   int // changes that must meet the first row; each one that does not is a missing row

	remove bool // the first row goes, and has to be there
	purge  bool // it goes, if it is there: a row that was inserted over it has gone again

	keys   decode.Row // where the key's values stand
	row    decode.Row // what the slot's row is given
	own    bool       // row belongs to the slot
	origin int        // of a row that has arrived: the slot it comes from
}

type slotState byte

const (
	untouched slotState = iota
	patched             // the first row, changed
	inserted            // inserted; over the first row, if there is one
	renewed             // inserted where nothing can be
	vacant              // deleted, or moved away
	arrived             // the first row of another slot, that was given this key
)

// reducer brings what changes of one table do down to one change a key. What it can't express as sets
// of rows, whose order does not matter, it gives up.
type reducer struct {
	binding *binding
	index   map[string]int
	slots   []slot
	key     []byte
}

// reduce takes the changes with these indexes; false means that they have to go one by one.
func (r *reducer) reduce(b *binding, changes []*decode.Change, which []int) bool {
	r.binding, r.slots = b, r.slots[:0]
	if r.index == nil {
		r.index = make(map[string]int, len(which))
	}
	clear(r.index)
	for _, i := range which {
		if !r.change(i, changes[i]) {
			return false
		}
	}
	return true
}

func (r *reducer) change(i int, ch *decode.Change) bool {
	if r.binding.fits(ch) != nil || !small(ch.New) || !small(ch.Old) {
		return false
	}
	switch ch.Op {
	case decode.OpInsert:
		return ch.Old == nil && r.insert(i, ch)
	case decode.OpUpdate:
		return r.update(i, ch)
	case decode.OpDelete:
		return r.delete(i, ch)
	}
	return false
}

func small(row decode.Row) bool {
	n := 0
	for i := range row {
		n += len(row[i].Bytes())
	}
	return n <= maxReducedRow
}

// at gives the slot of the key in a row, -1 if its text does not tell it from others.
func (r *reducer) at(i int, row decode.Row) int {
	b := r.binding
	r.key = r.key[:0]
	for n, col := range b.keyCols {
		if row[col].Presence() != decode.Present {
			return -1
		}
		text, ok := b.keyForms[n].text(row[col].Bytes())
		if !ok {
			return -1
		}
		if len(b.keyCols) > 1 {
			r.key = binary.AppendUvarint(r.key, uint64(len(text)))
		}
		r.key = append(r.key, text...)
	}
	at, ok := r.index[string(r.key)]
	if !ok {
		at = len(r.slots)
		r.index[string(r.key)] = at
		r.slots = append(r.slots, slot{change: i, keys: row})
	}
	return at
}

func (r *reducer) insert(i int, ch *decode.Change) bool {
	at := r.at(i, ch.New)
	if at < 0 {
		return false
	}
	s := &r.slots[at]
	switch s.state {
	case untouched:
		s.state = inserted
	case vacant:
		s.state, s.row, s.own = renewed, nil, false
	case inserted, renewed:
	default: // the row it meets may be missing, and would then be made
		return false
	}
	s.give(ch.New)
	return true
}

func (r *reducer) update(i int, ch *decode.Change) bool {
	found := ch.New
	if ch.Old != nil {
		found = ch.Old
	}
	at := r.at(i, found)
	if at < 0 {
		return false
	}
	if ch.Old != nil && r.binding.moves(ch) {
		return r.move(i, at, ch)
	}
	s := &r.slots[at]
	switch s.state {
	case untouched:
		if !r.binding.writes(ch.New) { // nothing to be done is not looked for
			return ch.Old == nil
		}
		s.state, s.need = patched, 1
	case patched:
		s.need++
	case arrived:
		r.slots[s.origin].need++
	case inserted, renewed:
	default:
		return false
	}
	s.give(ch.New)
	return true
}

func (r *reducer) delete(i int, ch *decode.Change) bool {
	at := r.at(i, ch.Old)
	if at < 0 {
		return false
	}
	s := &r.slots[at]
	switch s.state {
	case untouched, patched:
		s.remove, s.need = true, s.need+1
	case inserted:
		s.purge = true
	case renewed:
	default:
		return false
	}
	s.state, s.row, s.own = vacant, nil, false
	return true
}

// move follows a row to another key.
func (r *reducer) move(i, from int, ch *decode.Change) bool {
	target := ch.New
	for _, col := range r.binding.keyCols {
		if target[col].Presence() == decode.Unchanged {
			target = slices.Clone(target)
			target[col] = ch.Old[col]
		}
	}
	to := r.at(i, target)
	if to < 0 || len(r.binding.always) > 0 {
		return false
	}
	s, d := &r.slots[from], &r.slots[to]
	if s.state != untouched && s.state != patched || d.state != untouched && d.state != vacant || from == to {
		return false
	}
	s.give(target)
	d.state, d.row, d.own, d.origin = arrived, s.row, s.own, from
	s.state, s.row, s.own, s.need = vacant, nil, false, s.need+1
	return true
}

// give lays a change's values over the slot's.
func (s *slot) give(row decode.Row) {
	if s.row == nil {
		s.row = row
		return
	}
	if !s.own {
		s.row, s.own = slices.Clone(s.row), true
	}
	for i := range row {
		if p := row[i].Presence(); p == decode.Present || p == decode.Null {
			s.row[i] = row[i]
		}
	}
}

// moves reports whether an update gives its row another key.
func (b *binding) moves(ch *decode.Change) bool {
	for n, i := range b.keyCols {
		now := ch.New[i]
		if now.Presence() == decode.Unchanged {
			continue
		}
		if now.Presence() != decode.Present {
			return true
		}
		was, _ := b.keyForms[n].text(ch.Old[i].Bytes())
		is, _ := b.keyForms[n].text(now.Bytes())
		if string(was) != string(is) {
			return true
		}
	}
	return false
}

// writes reports whether a row has values beside the key's that can be written.
func (b *binding) writes(row decode.Row) bool {
	for i := range row {
		if p := row[i].Presence(); (p == decode.Present || p == decode.Null) && !b.columns[i].generated && !slices.Contains(b.keyCols, i) {
			return true
		}
	}
	return false
}

// collect gives the sets in the order in which they have to be applied: what goes makes room for what
// moves and what comes. A set is of rows that are given the same columns.
func (r *reducer) collect() []*setRun {
	var sets [setKinds][]*setRun
	var pattern []byte
	add := func(kind setKind, s *slot, keys, row decode.Row, need int) {
		pattern = r.binding.setPattern(pattern[:0], kind, row)
		at := slices.IndexFunc(sets[kind], func(run *setRun) bool { return run.pattern == string(pattern) })
		if at < 0 {
			at = len(sets[kind])
			sets[kind] = append(sets[kind], newSetRun(r.binding, kind, string(pattern), s.change, row))
		}
		sets[kind][at].add(keys, row, need)
	}
	for i := range r.slots {
		s := &r.slots[i]
		switch {
		case s.remove:
			add(setDelete, s, s.keys, nil, s.need)
		case s.purge:
			add(setPurge, s, s.keys, nil, 0)
		}
		switch s.state {
		case patched:
			add(setUpdate, s, s.keys, s.row, s.need)
		case arrived:
			from := &r.slots[s.origin]
			add(setMove, s, from.keys, s.row, from.need)
		case inserted:
			add(setInsert, s, nil, s.row, 0)
		case renewed:
			add(setRenew, s, nil, s.row, 0)
		}
	}
	clear(r.slots) // the rows are the batch's
	return slices.Concat(sets[:]...)
}
