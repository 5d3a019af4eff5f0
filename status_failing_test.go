package flo

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatFailsForLongIsWarnedOfRarelyAndShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
		var s workerStatus
		began := time.Now()
		fail := func() {
			s.interrupted(context.Background(), log, slog.LevelWarn, "the sink failed", errors.New("gone"))
		}
		fail()
		for time.Since(began) < 5*time.Minute { // warned of after 1, 2 and 4 minutes
			time.Sleep(10 * time.Second)
			fail()
		}
		if n := strings.Count(out.String(), "level=WARN"); n != 4 || strings.Count(out.String(), "failed for long") != 3 {
			t.Errorf("%d warnings:\n%s", n, out.String())
		}
		for time.Since(began) < 10*time.Hour {
			time.Sleep(10 * time.Second)
			fail()
		}
		if n := strings.Count(out.String(), "failed for long"); n < 12 || n > 20 {
			t.Errorf("%d warnings in 10 hours", n)
		}
		if st := s.snapshot(); !st.Failing.Since.Equal(began) || st.Failing.Tries != 3601 || st.LastError != "gone" {
			t.Errorf("%+v", st)
		}
		s.wrote(&batch{})
		if st := s.snapshot(); st.Failing != (Failing{}) {
			t.Errorf("after a success: %+v", st.Failing)
		}
	})
}
