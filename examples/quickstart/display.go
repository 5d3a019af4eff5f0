package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pgflo/flo"
)

// display writes lines, and below them, on a terminal, one line that is drawn again and again.
type display struct {
	out      *os.File
	terminal bool
	drawn    bool // the line that is drawn again stands there
	next     time.Time
}

const (
	// lineInterval is how often progress is written where it can't be drawn over.
	lineInterval = 2 * time.Second
	barWidth     = 28
)

func newDisplay(out *os.File) *display {
	d := &display{out: out}
	if info, err := out.Stat(); err == nil {
		d.terminal = info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return d
}

// line writes a line for good.
func (d *display) line(format string, args ...any) {
	d.clear()
	fmt.Fprintf(d.out, format+"\n", args...)
}

// step says what begins, does it, and says how long it took.
func (d *display) step(what string, do func() error) error {
	if d.terminal {
		d.draw(what + " …")
	}
	began := time.Now()
	err := do()
	if err == nil {
		d.line("%-66s %6s", what, seconds(time.Since(began)))
	}
	return err
}

// progress shows the meter: drawn over on a terminal, a line now and then elsewhere.
func (d *display) progress(m *meter) {
	if d.terminal {
		d.draw(progressText(m, true))
		return
	}
	if now := time.Now(); now.After(d.next) {
		d.next = now.Add(lineInterval)
		d.line("%s", progressText(m, false))
	}
}

func progressText(m *meter, bar bool) string {
	rows, changes := m.rates()
	switch {
	case m.phase == flo.PhaseRetrying || m.reading == flo.PhaseRetrying:
		return "interrupted, trying again"
	case m.reading == flo.PhaseStopped:
		return "starting"
	case m.changes == 0 && m.rows == 0:
		return string(m.reading)
	case m.copied.IsZero() && m.changes == 0:
		text := fmt.Sprintf("copy %3.0f %%  %s rows, %s/s", m.fraction*100, thousands(m.rows), thousands(uint64(rows)))
		if bar {
			full := int(m.fraction * barWidth)
			text = "[" + strings.Repeat("█", full) + strings.Repeat("░", barWidth-full) + "]  " + text
		}
		return text
	}
	return fmt.Sprintf("stream  %s changes, %s/s, lag %s", thousands(m.changes), thousands(uint64(changes)), milliseconds(m.lag))
}

func (d *display) draw(text string) {
	fmt.Fprint(d.out, "\r\x1b[K", text)
	d.drawn = true
}

func (d *display) clear() {
	if d.drawn {
		fmt.Fprint(d.out, "\r\x1b[K")
		d.drawn = false
	}
}

// end leaves the cursor at the beginning of a line.
func (d *display) end() { d.clear() }
