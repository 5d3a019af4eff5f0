package flo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// unknownLabel gives what a rule says of an enum's label that its description lacks.
func unknownLabel(err error) *rules.LabelError {
	var e *rules.LabelError
	errors.As(err, &e)
	return e
}

// errNoLabels says that a label is still unknown, since the replicator could not be asked. It may pass.
var errNoLabels = errors.New("flo: the replicator was asked for an enum's labels and did not answer")

// labelRetry is how often a replicator that isn't there is asked again, within labelBound.
const labelRetry = 200 * time.Millisecond

// learnLabels asks the replicator for the labels that an enum has by now. It reports whether the one that is
// missing is among them.
func (f *feed) learnLabels(ctx context.Context, e *rules.LabelError) (bool, error) {
	question, err := json.Marshal(labelQuestion{Type: e.Type.OID})
	if err != nil {
		return false, err
	}
	subject := labelSubject(f.cfg.group)
	bound, cancel := context.WithTimeout(ctx, 2*labelBound)
	defer cancel()
	var m *nats.Msg
	for {
		if m, err = f.nc.RequestWithContext(bound, subject, question); !errors.Is(err, nats.ErrNoResponders) || pollWait(bound, labelRetry) != nil {
			break
		}
	}
	var a labelAnswer
	if err == nil {
		err = json.Unmarshal(m.Data, &a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w: %w: start the replicator; the worker needs the right to publish to %s", errNoLabels, e, err, subject)
	}
	if err := f.parser.Labels(e.Type.OID, a.Labels); err != nil {
		return false, err
	}
	return slices.Contains(a.Labels, e.Label), nil
}

// relabelled decodes a change and runs the rules on it again, with the labels that err misses. Those that are
// renamed can't be had: which is why err is returned.
func (f *feed) relabelled(ctx context.Context, frame []byte, err error) (c *decode.Change, keep bool, _ error) {
	for {
		known, lerr := f.learnLabels(ctx, unknownLabel(err))
		switch {
		case ctx.Err() != nil:
			return nil, false, context.Cause(ctx)
		case lerr != nil && isBinding(err):
			return nil, false, err
		case lerr != nil:
			return nil, false, lerr
		case !known && isBinding(err):
			return nil, false, err
		case !known:
			return nil, false, fmt.Errorf("%w; it has been renamed since, so that its place in the order can't be known: rename it back, or compare by Eq, Ne or In", err)
		}
		again, cerr := f.parser.Change(frame, f.batch.arena)
		if cerr != nil {
			return nil, false, cerr
		}
		c = again
		c.Tx, c.Ordinal = f.tx, f.ordinal
		before := unknownLabel(err)
		keep, err = applyRules(f.rules, c)
		if e := unknownLabel(err); e == nil || e.Label == before.Label && e.Type.OID == before.Type.OID {
			return c, keep, err
		}
	}
}

// isBinding tells a value of the rule, which may be misspelt, from one of a row.
func isBinding(err error) bool {
	var b *rules.BindError
	return errors.As(err, &b)
}

// bind is the rules' Bind, with labels that the relation's description lacks.
func (f *feed) bind(ctx context.Context, rel *decode.Relation) (*rules.Binding, error) {
	var before *rules.LabelError
	for {
		b, err := f.rules.Bind(rel)
		e := unknownLabel(err)
		if e == nil || before != nil && e.Label == before.Label && e.Type.OID == before.Type.OID {
			return b, err
		}
		before = e
		known, lerr := f.learnLabels(ctx, e)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if lerr != nil || !known {
			return nil, err
		}
		rel = f.parser.Lookup(rel.OID)
	}
}
