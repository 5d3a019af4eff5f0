package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/pgflo/flo/decode"
)

// labelStep is one step from an enum's labels to others: a new name for one, or a new one.
type labelStep struct {
	from  string // of a rename
	label string
	where string // of a new one: "BEFORE" or "AFTER" another
	other string
}

func (s labelStep) sql(name decode.Name, alias func(string) string) string {
	alter := "ALTER TYPE " + identOf(name) + " "
	switch {
	case s.where == "":
		return alter + "RENAME VALUE " + literal(s.from) + " TO " + literal(s.label)
	case s.other == "":
		return alter + "ADD VALUE IF NOT EXISTS " + literal(s.label)
	}
	return alter + "ADD VALUE IF NOT EXISTS " + literal(s.label) + " " + s.where + " " + literal(alias(s.other))
}

// labelSteps leads from labels to others. No label ever goes, and none changes its place: between two that both have,
// as many old ones as new ones are renamed; new ones alone are new. What else there is can't be told.
func labelSteps(was, now []string) (steps []labelStep, ok bool) {
	var renames, adds []labelStep
	at := 0
	for i := 0; i <= len(now); {
		// A run of labels that are not among the old ones.
		end := i
		for end < len(now) && !slices.Contains(was, now[end]) {
			end++
		}
		gone := at
		for gone < len(was) && !slices.Contains(now, was[gone]) {
			gone++
		}
		switch {
		case gone-at == end-i:
			for k := range end - i {
				renames = append(renames, labelStep{from: was[at+k], label: now[i+k]})
			}
		case gone == at:
			for k := i; k < end; k++ {
				adds = append(adds, placed(now, k, was))
			}
		default:
			return nil, false
		}
		at, i = gone, end
		if i == len(now) {
			break
		}
		if at >= len(was) || was[at] != now[i] {
			return nil, false
		}
		at++
		i++
	}
	return append(renames, adds...), at == len(was)
}

// placed puts a new label behind the one before it, or in front of the first old one.
func placed(now []string, k int, was []string) labelStep {
	if k > 0 {
		return labelStep{label: now[k], where: "AFTER", other: now[k-1]}
	}
	s := labelStep{label: now[k], where: "BEFORE"}
	if i := slices.IndexFunc(now, func(l string) bool { return slices.Contains(was, l) }); i >= 0 {
		s.other = now[i]
	} else if len(was) > 0 {
		s.other = was[0]
	}
	return s
}

// enumSteps gives the steps to a type's labels from those of the books, or of the destination, which may have more.
func enumSteps(t *decode.TypeShape, p *page, live []string) ([]labelStep, error) {
	var was []string
	if p != nil {
		was = p.typ.Labels
	} else {
		was = slices.DeleteFunc(slices.Clone(live), func(l string) bool { return !slices.Contains(t.Labels, l) })
	}
	steps, ok := labelSteps(was, t.Labels)
	renamed := p == nil && len(was) < len(live) && len(steps) > 0 // or a label of the destination's own
	if !ok || renamed {
		return nil, &DDLError{Object: t.Qualified(), Action: "changing the labels", Err: fmt.Errorf("from %q to %q: new labels can't be told from renamed ones", live, t.Labels),
			Remedy: "ALTER TYPE … RENAME VALUE or ADD VALUE by hand, and start again"}
	}
	return steps, nil
}

// alterEnum gives an enum its labels. New ones were added before the transaction (addLabels), unless it goes on from
// batches before: then it is one transaction of the source's, where a new label can't be used either.
func (d *ddl) alterEnum(t *decode.TypeShape, p *page, live *liveType) error {
	steps, err := enumSteps(t, p, live.labels)
	if err != nil {
		return err
	}
	labels := live.labels
	for _, s := range steps {
		if slices.Contains(labels, s.label) || s.where == "" && !slices.Contains(labels, s.from) {
			continue
		}
		if s.other != "" && !slices.Contains(labels, s.other) {
			s.other = ""
		}
		action := fmt.Sprintf("adding label %q", s.label)
		if s.where == "" {
			action = fmt.Sprintf("renaming label %q to %q", s.from, s.label)
		}
		if err := d.run(t.Qualified(), action, s.sql(t.Qualified(), func(l string) string { return l })); err != nil {
			return err
		}
		labels = append(slices.Clone(labels), s.label)
	}
	return nil
}

// addLabels adds the labels that enums get by schema changes among changes, in a transaction of its own: no value may
// have a new label before its transaction has committed, and a batch is one transaction for many of the source's. That
// a label is there early does no harm.
// https://www.postgresql.org/docs/current/sql-altertype.html#id-1.9.3.42.7
func (s *Sink) addLabels(ctx context.Context, changes []*decode.Change) error {
	if s.config.ddl.ignore || s.tx.begun {
		return nil
	}
	e := earlyLabels{known: map[uint32]*earlyEnum{}}
	for i, ch := range changes {
		if ch.Op != decode.OpSchema || ch.Schema == nil || ch.Schema.Baseline || ch.Schema.Failed != "" {
			continue
		}
		if e.ddl == nil {
			e.ddl = s.newDDL(ctx, s.main.pg, s.start.Load(), nil)
		}
		for k := range ch.Schema.Types {
			if t := &ch.Schema.Types[k]; t.Kind == "e" {
				if err := e.add(t); err != nil {
					return judge(err, i)
				}
			}
		}
	}
	return nil
}

type earlyLabels struct {
	ddl   *ddl
	known map[uint32]*earlyEnum
}

// earlyEnum is an enum as the changes so far will have left it.
type earlyEnum struct {
	name   decode.Name // now
	page   *page
	live   []string          // now
	labels map[string]string // what a label is called now
}

func (e *earlyLabels) add(t *decode.TypeShape) error {
	d := e.ddl
	x, ok := e.known[t.OID]
	if !ok {
		p, err := d.books.get(typePage, t.OID)
		if err != nil {
			return err
		}
		x = &earlyEnum{name: t.Qualified(), page: p, labels: map[string]string{}}
		if p != nil {
			x.name = p.dest
		}
		live, err := d.liveType(x.name)
		if err != nil {
			return err
		}
		if other, err := d.books.called(typePage, x.name); err != nil {
			return err
		} else if live == nil || live.kind != "e" || other != nil && other.oid != t.OID { // which has another name by then
			x = nil
		} else {
			x.live = live.labels
		}
		e.known[t.OID] = x
	}
	if x == nil {
		return nil // made within the transaction: its labels can be used there
	}
	steps, err := enumSteps(t, x.page, x.live)
	if err != nil {
		return err
	}
	now := func(label string) string {
		if was, ok := x.labels[label]; ok {
			return was
		}
		return label
	}
	for _, s := range steps {
		switch {
		case s.where == "":
			x.labels[s.label] = now(s.from)
		case !slices.Contains(x.live, s.label):
			if s.other != "" && !slices.Contains(x.live, now(s.other)) {
				s.other = ""
			}
			if err := d.alone(x.name, s.sql(x.name, now)); err != nil {
				return d.fail(x.name, fmt.Sprintf("adding label %q", s.label), s.sql(x.name, now), err)
			}
			x.live = append(slices.Clone(x.live), s.label)
		}
	}
	x.page = typeOf(t)
	return nil
}

// alone runs a statement in a transaction of its own.
func (d *ddl) alone(object decode.Name, sql string) error {
	wait := strconv.FormatInt(d.sink.config.ddl.wait.Milliseconds(), 10)
	if err := simple(d.ctx, d.pg, begin+"; SET LOCAL lock_timeout = "+wait); err != nil {
		return err
	}
	if _, err := exec(d.ctx, d.pg, sql); err != nil {
		d.sink.main.reset(d.ctx)
		return err
	}
	if err := commit(d.ctx, d.pg); err != nil {
		return err
	}
	d.sink.config.logger.InfoContext(d.ctx, "altered the destination as the source will be", "what", object.String(), "sql", sql)
	return nil
}
