package flo

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
)

var (
	groupName  = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)
	slotName   = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	workerName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

func (c *config) validateCommon() {
	if !groupName.MatchString(c.group) {
		c.bad("WithGroup(%q): want one to 40 of lower-case letters, digits and underscores, a letter first", c.group)
	}
	if c.lease < time.Second || c.lease > 10*time.Minute {
		c.bad("WithLeaseTime(%s): want 1s to 10m", c.lease)
	}
	if c.stopTimeout < 100*time.Millisecond || c.stopTimeout > 10*time.Minute {
		c.bad("WithStopTimeout(%s): want 100ms to 10m", c.stopTimeout)
	}
	c.validateResync()
	given := 0
	for _, set := range []bool{c.nats.conn != nil, c.nats.js != nil, c.nats.url != "", c.nats.server != nil} {
		if set {
			given++
		}
	}
	if given == 0 && !c.nats.bad {
		c.bad("NATS: give one of WithNATS, WithNATSURL, WithJetStream, WithNATSServer")
	}
	if given > 1 {
		c.bad("NATS: WithNATS, WithNATSURL, WithJetStream and WithNATSServer exclude each other")
	}
}

func (c *config) validateReplicator() {
	c.errs = append(c.errs, c.sourceErrs...)
	if c.source == nil && c.sourceErrs == nil {
		c.bad("WithSource: the source database is missing")
	}
	if c.slot == "" {
		c.slot = defaultSlot(c.group)
	}
	if !slotName.MatchString(c.slot) {
		c.bad("WithSlot(%q): want one to 63 of lower-case letters, digits and underscores", c.slot)
	}
	switch c.mode {
	case CopyAndStream, StreamOnly, CopyOnly:
	default:
		c.bad("WithMode(%q): want CopyAndStream, StreamOnly or CopyOnly", c.mode)
	}
	for _, p := range append(append([]string(nil), c.tables...), c.exclude...) {
		if _, err := names.Parse(p); err != nil {
			c.bad("table pattern %q: %w", p, err)
		}
	}
	c.validatePublications()
	if c.copyConnections < 1 || c.copyConnections > 64 {
		c.bad("WithCopyConnections(%d): want 1 to 64", c.copyConnections)
	}
	if c.replicas != 1 && c.replicas != 3 && c.replicas != 5 {
		c.bad("WithStreamReplicas(%d): want 1, 3 or 5", c.replicas)
	}
	if c.maxBytes != 0 && c.maxBytes < minStreamBytes {
		c.bad("WithStreamMaxBytes(%d): want at least %d bytes, or 0 for no limit", c.maxBytes, minStreamBytes)
	}
	if c.idleInterval < 100*time.Millisecond {
		c.bad("WithIdleInterval(%s): want at least 100ms", c.idleInterval)
	}
	if c.walLimit != 0 && c.walLimit < minWALLimit {
		c.bad("WithWALLimit(%d): want at least %d bytes, or 0 for no limit", c.walLimit, minWALLimit)
	}
	switch c.walAction {
	case WarnOnWAL, StopOnWAL, DropSlotOnWAL:
	default:
		c.bad("WithWALLimit(%q): want WarnOnWAL, StopOnWAL or DropSlotOnWAL", c.walAction)
	}
	if !c.windowGiven && c.nats.server != nil && c.nats.server.SyncAlways() {
		c.replayWindow = 0
	}
	if c.replayWindow < 0 || c.replayWindow > 24*time.Hour {
		c.bad("WithReplayWindow(%s): want 0 to 24h", c.replayWindow)
	}
}

func (c *config) validatePublications() {
	if !c.adoptGiven {
		return
	}
	if len(c.publications) == 0 {
		c.bad("WithPublication: no name is given; leave it out for publications of flo's own")
	}
	for i, name := range c.publications {
		if name == "" || len(name) > names.MaxLength || strings.ContainsRune(name, 0) {
			c.bad("WithPublication(%q): want 1 to %d bytes", name, names.MaxLength)
		}
		if slices.Contains(c.publications[:i], name) {
			c.bad("WithPublication(%q): the name is given twice", name)
		}
	}
	if len(c.tables)+len(c.exclude) > 0 {
		c.bad("WithPublication: the publication says which tables; leave WithTables and WithExcludeTables out")
	}
}

func (c *config) validateWorkers() {
	seen := map[string]bool{}
	for i := range c.workers {
		w := &c.workers[i]
		if !workerName.MatchString(w.name) {
			c.bad("WithWorker(%q): want one to 64 of letters, digits, '_' and '-'", w.name)
		}
		if seen[w.name] {
			c.bad("WithWorker(%q): the name is given twice", w.name)
		}
		seen[w.name] = true
		if isNil(w.sink) {
			c.bad("worker %q: the sink is nil", w.name)
		} else if v := sink.As[sink.Validator](w.sink); v != nil {
			if err := v.Validate(); err != nil {
				c.bad("worker %q: %w", w.name, err)
			}
		}
		if w.batchSize < 1 || w.batchSize > 1_000_000 {
			c.bad("worker %q: WithBatchSize(%d): want 1 to 1000000 changes", w.name, w.batchSize)
		}
		if w.batchBytes < 1<<10 || w.batchBytes > 1<<30 {
			c.bad("worker %q: WithBatchBytes(%d): want 1 KiB to 1 GiB", w.name, w.batchBytes)
		}
		if w.flushInterval < 0 || w.flushInterval > time.Hour {
			c.bad("worker %q: WithFlushInterval(%s): want 0 to 1h", w.name, w.flushInterval)
		}
		if w.startAt != StartAtBeginning && w.startAt != StartAtNow {
			c.bad("worker %q: WithStartAt(%q): want StartAtBeginning or StartAtNow", w.name, w.startAt)
		}
		if w.observe && c.ddl {
			c.bad("worker %q: WithDDLFromRelations: WithDDL tells of all schema changes; leave it out", w.name)
		}
		if w.policy != Stop && w.policy != DeadLetter {
			c.bad("worker %q: WithErrorPolicy(%q): want Stop or DeadLetter", w.name, w.policy)
		}
		if w.letterLimit < 1 || w.letterLimit > maxLetterLimit {
			c.bad("worker %q: WithDeadLetterLimit(%d): want 1 to %d", w.name, w.letterLimit, maxLetterLimit)
		}
		if err := rules.Validate(w.rules...); err != nil {
			c.bad("worker %q: %w", w.name, err)
		}
	}
}

func defaultSlot(group string) string { return "flo_" + group }
