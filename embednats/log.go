package embednats

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// logAdapter is a nats-server Logger over slog. It also keeps the first fatal error:
// an embedded nats-server reports a failed start nowhere else.
type logAdapter struct {
	log *slog.Logger

	mu    sync.Mutex
	first error
}

func (l *logAdapter) debugEnabled() bool {
	return l.log.Enabled(context.Background(), slog.LevelDebug)
}

func (l *logAdapter) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

func (l *logAdapter) put(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, fmt.Sprintf(format, v...), slog.String("component", "nats-server"))
	}
}

func (l *logAdapter) Noticef(format string, v ...any) { l.put(slog.LevelInfo, format, v) }
func (l *logAdapter) Warnf(format string, v ...any)   { l.put(slog.LevelWarn, format, v) }
func (l *logAdapter) Errorf(format string, v ...any)  { l.put(slog.LevelError, format, v) }
func (l *logAdapter) Debugf(format string, v ...any)  { l.put(slog.LevelDebug, format, v) }
func (l *logAdapter) Tracef(string, ...any)           {}

func (l *logAdapter) Fatalf(format string, v ...any) {
	l.put(slog.LevelError, format, v)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.first = fmt.Errorf(format, v...)
	}
}
