package flo

import (
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// A rename is worth a warning only to options that name tables.
func TestARenameIsToldToOptionsThatNameTables(t *testing.T) {
	was, now := decode.Name{Schema: "public", Name: "a"}, decode.Name{Schema: "public", Name: "b"}
	masked := rules.Table("x", rules.Mask("v"))
	for _, c := range []struct {
		of   config
		want bool
	}{
		{config{}, false},
		{config{tables: []string{"public.*"}}, false},
		{config{tables: []string{"other", "a"}}, true},
		{config{exclude: []string{"b*"}}, true},
		{config{workers: []workerConfig{{}}}, false},
		{config{workers: []workerConfig{{}, {rules: []rules.Rule{masked}}}}, true},
	} {
		if got := c.of.tellsApart(was, now); got != c.want {
			t.Errorf("tables %q, exclude %q, %d workers: %v", c.of.tables, c.of.exclude, len(c.of.workers), got)
		}
	}
}
