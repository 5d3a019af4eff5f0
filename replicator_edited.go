package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/state"
)

// The group's record says what published each of its tables when flo last looked, in flo's own publications or
// somebody else's. What differs now, and was not flo's doing, has been changed by others: the tables may lack changes, and
// are copied afresh.

// edit is what became of a table's publication since the record was written.
type edit int

const (
	unedited edit = iota
	joined        // the table is not in the record
	replaced      // it left and came back, or has another row filter or column list
	reset         // the publication's options were set
)

// editSince compares a table with the record. A publication that the record doesn't know is taken as it is.
func editSince(rec state.Adopted, oid uint32, now source.Entries) edit {
	if !known(rec, oid) {
		return joined
	}
	result := replaced
	for _, e := range now.Tables[oid] {
		if !slices.Contains(rec.Tables[oid], e.OID) {
			continue
		}
		p, ok := rec.Publications[e.Publication]
		if before := (source.Revision{OID: p.OID, Owner: p.Owner, Row: p.Row}); !ok || !before.Changed(now.Publications[e.Publication]) {
			return unedited
		}
		result = reset
	}
	return result
}

func known(rec state.Adopted, oid uint32) bool {
	_, ok := rec.Tables[oid]
	return ok
}

// record is what the group is to remember.
func (s *replication) record() state.Adopted {
	rec := state.Adopted{Tables: make(map[uint32][]uint32, len(s.tables)), Publications: make(map[string]state.Publication, len(s.entries.Publications))}
	for i := range s.tables {
		var oids []uint32
		for _, e := range s.entries.Tables[s.tables[i].OID] {
			oids = append(oids, e.OID)
		}
		rec.Tables[s.tables[i].OID] = oids
	}
	for name, r := range s.entries.Publications {
		rec.Publications[name] = state.Publication{OID: r.OID, Owner: r.Owner, Row: r.Row}
	}
	return rec
}

// adopted notes which tables the group has, and what publishes them, once the stream says that they are copied.
func (s *replication) adopted(ctx context.Context) error {
	s.known = s.record()
	return s.store.PutAdopted(ctx, s.known)
}

// editedByOthers gives the tables that others have added to the publications, or changed in them, since the group's record
// was written: they are copied. Where there is no record, the publications are taken as they are.
func (s *replication) editedByOthers(ctx context.Context, tables []source.Table, now source.Entries) (due []uint32, err error) {
	rec, err := s.store.Adopted(ctx)
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return nil, err
	}
	noRecord := err != nil
	var lost []string
	for i := range tables {
		t := &tables[i]
		what := editSince(rec, t.OID, now)
		if noRecord {
			what = unedited
		}
		// flo's own publishes everything, whatever there is to compare it with.
		own := s.r.cfg.publicationName()
		if what == unedited && !s.r.cfg.adopts() && slices.ContainsFunc(now.Tables[t.OID], func(e source.Entry) bool { return e.Publication == own }) && !now.Publications[own].Whole {
			what = reset
		}
		switch {
		case what == unedited:
			continue
		case what != joined && s.noCopy && s.loses(what):
			there, err := s.r.source.Exists(ctx, s.conn, t.OID)
			if err != nil {
				return nil, err
			}
			if there {
				lost = append(lost, names.Qualified(t.Schema, t.Name))
			}
		case s.noCopy:
			s.say(ctx, t, what)
		default:
			due = append(due, t.OID)
			s.say(ctx, t, what)
		}
	}
	if lost != nil {
		return nil, s.lacking(lost)
	}
	return due, nil
}

// edited compares a table of the group with the record, between two starts.
func (s *replication) edited(ctx context.Context, t *source.Table, now source.Entries) error {
	if s.r.cfg.mode == CopyOnly || len(now.Tables[t.OID]) == 0 { // it has just left
		return nil
	}
	switch what := editSince(s.known, t.OID, now); {
	case what == unedited || what == joined:
		return nil
	case !s.noCopy:
		s.say(ctx, t, what)
		return errRound
	case s.loses(what):
		return &adoptedChanged{s.lacking([]string{names.Qualified(t.Schema, t.Name)})}
	default:
		s.say(ctx, t, what)
		return nil
	}
}

// remade reports whether somebody has taken a table that isn't due in any case out of the publications since a look at them, or set
// their options: flo has put it right, and the next comparison with the record shows what has to be copied.
func (s *replication) remade(seen source.Entries, asked, due map[uint32]bool) bool {
	for oid, before := range seen.Tables {
		now := s.entries.Tables[oid]
		if due[oid] || !asked[oid] {
			continue
		}
		if len(now) == 0 {
			return true
		}
		for _, e := range before {
			p, there := s.entries.Publications[e.Publication]
			if there && seen.Publications[e.Publication].Changed(p) ||
				slices.ContainsFunc(now, func(n source.Entry) bool { return n.Publication == e.Publication && n.OID != e.OID }) {
				return true
			}
		}
	}
	return false
}

// loses reports whether an edit may have lost changes against everybody's will: what tables and rows an owner publishes
// is the owner's decision, unlike in flo's own publications.
func (s *replication) loses(what edit) bool { return what == reset || !s.r.cfg.adopts() }

// say tells of an edit.
func (s *replication) say(ctx context.Context, t *source.Table, what edit) {
	name := names.Qualified(t.Schema, t.Name)
	switch {
	case what == joined:
		s.log.InfoContext(ctx, "a table was added to the publication: it is copied, unless the mode is StreamOnly", slog.String("table", name))
	case s.noCopy:
		s.warn(ctx, fmt.Sprintf("table %s left the publication and came back, or has another row filter or column list: what was not published meanwhile is missing", name))
	default:
		text := "a table left the publication and came back, or has another row filter or column list: it is copied afresh"
		if what == reset {
			text = "the options of a table's publication were set by others: the table is copied afresh"
		}
		s.log.WarnContext(ctx, text, slog.String("table", name))
	}
}

// lacking is the end where nothing can be copied.
func (s *replication) lacking(tables []string) error {
	const most = 3
	list := strings.Join(tables[:min(len(tables), most)], ", ")
	if n := len(tables) - most; n > 0 {
		list += fmt.Sprintf(" and %d more", n)
	}
	publications, rest := s.r.cfg.publications, ""
	if !s.r.cfg.adopts() {
		publications, rest = []string{s.r.cfg.publicationName()}, ", and leave flo's publications alone"
	}
	return fmt.Errorf("%w: publication %q was changed by others, so that changes of %s may be missing: tables were taken out or replaced, or its options were set, and StreamOnly can't copy them; "+
		"%s%s", ErrTables, publications, list, startOver, rest)
}

// afterMending says what follows when an owner has mended a publication.
func (s *replication) afterMending() string {
	if s.noCopy {
		return "and if the table was written to meanwhile, " + startOver
	}
	return "and start again: what was changed in it is copied afresh"
}

// publicationGone tells a publication that does not exist from one that was made again: PostgreSQL reads changes with the
// catalog of their time (get_rel_sync_entry in src/backend/replication/pgoutput/pgoutput.c), and finds neither.
func (st *streaming) publicationGone(ctx context.Context, err error) error {
	gone := fmt.Errorf("%w: a publication of the group is gone: %w; %s", ErrTables, err, startOver)
	conn, cerr := st.r.source.Connect(ctx)
	if cerr != nil {
		return gone
	}
	defer conn.Close(context.WithoutCancel(ctx))
	now, cerr := st.r.source.Entries(ctx, conn, st.published)
	if cerr != nil || len(now.Publications) < len(st.published) {
		return gone
	}
	return fmt.Errorf("%w: a publication of the group was dropped and was made again, and what was written before that can't be read with it: %w; %s", ErrTables, err, startOver)
}
