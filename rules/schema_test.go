package rules_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

func pointer(s string) *string { return &s }

func TestSchemaChangesFollowRules(t *testing.T) {
	users := func() *decode.SchemaChange {
		return &decode.SchemaChange{Tag: "ALTER TABLE", Query: "ALTER TABLE users …", Tables: []decode.TableShape{{
			OID: 7, Schema: "public", Name: "users", Kind: "r", Ancestors: []decode.Name{{Schema: "public", Name: "people"}},
			Columns: []decode.ColumnShape{{Num: 1, Name: "id"}, {Num: 2, Name: "ssn", Missing: pointer("1")}, {Num: 3, Name: "email", Missing: pointer("a@b")}, {Num: 4, Name: "v", Missing: pointer("x")}},
			Indexes: []decode.IndexShape{{Name: "i", Columns: []int16{2}}},
		}}, Dropped: []decode.Dropped{{Kind: "index", Name: "j", Address: []string{"public", "j"}}}}
	}
	for name, c := range map[string]struct {
		rules []rules.Rule
		seen  []string // columns of the version that was bound before
		want  func(s *decode.SchemaChange)
	}{
		"no rule": {nil, nil, func(*decode.SchemaChange) {}},
		"only route": {[]rules.Rule{rules.Route("public.users", "crm.customers", rules.RenameColumn("id", "customer_id"))}, nil, func(s *decode.SchemaChange) {
			t := &s.Tables[0]
			t.Source, t.Schema, t.Name = &decode.Name{Schema: "public", Name: "users"}, "crm", "customers"
			t.Columns[0].Name, t.Columns[0].Source = "customer_id", "id"
		}},
		"excluded, by an ancestor": {[]rules.Rule{rules.Table("people", rules.Exclude("ssn"))}, nil, func(s *decode.SchemaChange) {
			s.Query = ""
			t := &s.Tables[0]
			t.LeftOut = []string{"ssn"}
			t.Columns = []decode.ColumnShape{t.Columns[0], t.Columns[2], t.Columns[3]}
		}},
		"masked, and seen before": {[]rules.Rule{rules.Mask("email")}, []string{"id", "email"}, func(s *decode.SchemaChange) {
			s.Query, s.Tables[0].Columns[2].Missing = "", nil
		}},
		"masked, and new": {[]rules.Rule{rules.On(rules.Exclude("email"), decode.OpUpdate)}, []string{"id"}, func(s *decode.SchemaChange) {
			s.Query, s.Tables[0].Columns[2].Missing, s.Tables[0].Rewritten = "", nil, true
		}},
		"another table's": {[]rules.Rule{rules.Table("others", rules.Exclude("ssn"), rules.Mask("email"))}, nil, func(s *decode.SchemaChange) { s.Query = "" }},
	} {
		b := rules.NewBinder(c.rules)
		if c.seen != nil {
			rel := &decode.Relation{OID: 7, Schema: "public", Name: "users", Identity: decode.IdentityFull}
			for _, n := range c.seen {
				rel.Columns = append(rel.Columns, decode.Column{Name: n, Type: decode.BuiltinType(25), Modifier: -1})
			}
			if _, err := b.Bind(rel); err != nil {
				t.Fatal(name, err)
			}
		}
		in, want := users(), users()
		c.want(want)
		got, err := b.Schema(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(got, want) {
			g, _ := json.MarshalIndent(got, "", " ")
			w, _ := json.MarshalIndent(want, "", " ")
			t.Errorf("%s: got %s\nwant %s", name, g, w)
		}
		if !reflect.DeepEqual(in, users()) {
			t.Errorf("%s: it was changed in place", name)
		}
	}
}
