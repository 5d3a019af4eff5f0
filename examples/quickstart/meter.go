package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/pgflo/flo"
)

// meter makes figures of the statuses it is given.
type meter struct {
	began  time.Time
	copied time.Time // when the destination had the whole copy; zero before
	caught time.Time // when it had caught up after that; zero before
	ended  time.Time // of the last status

	phase    flo.Phase // the worker's
	reading  flo.Phase // the replicator's
	fraction float64   // of the copy, from 0 to 1
	rows     uint64    // copied
	changes  uint64    // streamed
	lag      time.Duration
	lags     []time.Duration // of the samples taken since caught
	last     time.Time       // commit time of the last sample

	recent []sample // for the present rates
}

type sample struct {
	at            time.Time
	rows, changes uint64
}

const (
	// rateSamples is over how many statuses the present rates are taken.
	rateSamples = 20
	// maxLags bounds the samples that the lag's percentiles are taken of; the oldest half goes first.
	maxLags = 100_000
	// caughtUp is a lag from which on the destination counts as having caught up.
	caughtUp = time.Second
)

// take takes the figures of a pipeline with one worker.
func (m *meter) take(st flo.Status, now time.Time) {
	w := st.Workers[0]
	m.ended, m.phase, m.reading = now, w.Phase, st.Replicator.Phase
	m.rows, m.changes = w.CopyRows, w.Changes
	m.fraction = max(m.fraction, fraction(st))
	if m.copied.IsZero() && st.Replicator.CopyDone && w.CopiedSo == w.CopyTables && w.CopyTables > 0 {
		m.copied, m.fraction = now, 1
	}
	m.recent = append(m.recent, sample{now, m.rows, m.changes})
	if n := len(m.recent); n > rateSamples {
		m.recent = m.recent[n-rateSamples:]
	}
	if w.CommitTime.IsZero() || w.CommitTime.Equal(m.last) {
		return
	}
	m.last, m.lag = w.CommitTime, max(0, w.AppliedAt.Sub(w.CommitTime))
	if m.caught.IsZero() && m.lag < caughtUp {
		m.caught = now
	}
	if m.caught.IsZero() {
		return
	}
	if len(m.lags) == maxLags {
		m.lags = append(m.lags[:0], m.lags[maxLags/2:]...)
	}
	m.lags = append(m.lags, m.lag)
}

// fraction estimates how much of the copy the destination has: what has been read, by its size,
// times the part of the rows read that has been written.
func fraction(st flo.Status) float64 {
	var all, read, rows float64
	for _, t := range st.Replicator.Tables {
		size := float64(t.Bytes) + 1
		all += size
		rows += float64(t.Rows)
		if t.Ranges > 0 {
			read += size * float64(t.Done) / float64(t.Ranges)
		}
	}
	if all == 0 || rows == 0 {
		return 0
	}
	return read / all * min(1, float64(st.Workers[0].CopyRows)/rows)
}

// rates gives the present rows and changes a second.
func (m *meter) rates() (rows, changes float64) {
	if len(m.recent) < 2 {
		return 0, 0
	}
	a, b := m.recent[0], m.recent[len(m.recent)-1]
	seconds := b.at.Sub(a.at).Seconds()
	if seconds <= 0 {
		return 0, 0
	}
	return float64(b.rows-a.rows) / seconds, float64(b.changes-a.changes) / seconds
}

// percentile gives the lag that a share p of the samples does not exceed.
func (m *meter) percentile(p float64) time.Duration {
	if len(m.lags) == 0 {
		return 0
	}
	sorted := slices.Clone(m.lags)
	slices.Sort(sorted)
	return sorted[int(p*float64(len(sorted)-1))]
}

// summary is a line or two about all of it.
func (r *running) summary() string {
	m := &r.meter
	text := fmt.Sprintf("copied    %s rows", thousands(m.rows))
	streamedFrom := m.began
	if !m.copied.IsZero() {
		took := m.copied.Sub(m.began)
		text += fmt.Sprintf(" in %s, %s rows/s", seconds(took), thousands(uint64(float64(m.rows)/took.Seconds())))
		streamedFrom = m.copied
	}
	took := m.ended.Sub(streamedFrom)
	text += fmt.Sprintf("\nstreamed  %s changes in %s", thousands(m.changes), seconds(took))
	if took > 0 {
		text += fmt.Sprintf(", %s changes/s", thousands(uint64(float64(m.changes)/took.Seconds())))
	}
	if len(m.lags) > 0 {
		text += fmt.Sprintf("\nlag       p50 %s, max %s, from commit at the source to commit at the destination", milliseconds(m.percentile(0.5)), milliseconds(m.percentile(1)))
		if !m.copied.IsZero() && m.caught.After(m.copied) {
			text += fmt.Sprintf(",\n          once caught up, %s after the copy", seconds(m.caught.Sub(m.copied)))
		}
	}
	return text
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// thousands writes a number with commas.
func thousands(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
