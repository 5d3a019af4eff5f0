package pgsession

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestVersion(t *testing.T) {
	for s, want := range map[string]int{
		"15.18 (Debian 15.18-1.pgdg120+1)": 150018, "17beta2": 170000, "9.6.24": 90624, "18": 180000, "": 0, "x": 0,
	} {
		if got := parseVersion(s); got != want {
			t.Errorf("parseVersion(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestStatementKnowsTheVersion(t *testing.T) {
	for version, want := range map[int]string{130000: "", 140000: "'idle_session_timeout'", 170000: "'transaction_timeout'"} {
		s := statement(version, nil)
		if !strings.Contains(s, want) || (version < 140000 && strings.Contains(s, "idle_session")) {
			t.Errorf("version %d: %s", version, s)
		}
		if strings.Contains(s, ";") {
			t.Errorf("more than one statement: %s", s)
		}
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{Base: time.Second, Cap: 5 * time.Second}
		for _, bound := range []time.Duration{1, 2, 4, 5, 5, 5} {
			if got := b.bound(); got != bound*time.Second {
				t.Errorf("attempt %d is bounded by %v, want %v s", b.Attempts(), got, bound)
			}
			start := time.Now()
			if err := b.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > bound*time.Second {
				t.Errorf("waited %v, bound %v s", took, bound)
			}
		}
		b.Reset()
		if got := b.bound(); got != time.Second || b.Attempts() != 0 {
			t.Errorf("after Reset the bound is %v", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait under an ended context: %v", err)
		}
		var zero Backoff
		for range 200 {
			if zero.bound() > DefaultCap {
				t.Fatal("beyond the cap")
			}
			zero.next()
		}
	})
}
