package flo

import (
	"context"
	"log/slog"
)

// warnOfUnmet tells, when all tables are known, what rules name and no table has: data would pass as it is.
func (f *feed) warnOfUnmet(ctx context.Context) {
	if unmet := f.rules.Unmet(); len(unmet) > 0 {
		f.log.WarnContext(ctx, "rules name tables that are not copied: are they spelt as at the source?", slog.Any("tables", unmet))
	}
	if unmet := f.rules.UnmetColumns(); len(unmet) > 0 {
		f.log.WarnContext(ctx, "rules name columns that no table has: are they spelt as at the source?", slog.Any("columns", unmet))
	}
}
