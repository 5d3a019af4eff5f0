package decode

import "slices"

// Labels tells the parser which labels an enum has by now: a label that was added (ALTER TYPE … ADD VALUE)
// changes no table, so that PostgreSQL sends no Relation message and a relation's description lacks it.
// Relations that have the type become new versions at once. Descriptions to come keep their own labels only
// where these hold one that labels lacks: then they are newer, or of before a rename.
func (p *Parser) Labels(oid uint32, labels []string) error {
	p.labels[oid] = slices.Clone(labels)
	for _, k := range p.relations {
		if k.types[oid] == nil {
			continue
		}
		types, err := resolveTypes(p.relabelled(k.source.Types, false))
		if err != nil {
			return err
		}
		k.types = types
		if k.rel == nil {
			continue
		}
		rel, err := p.parseRelation(k.frame, k)
		if err != nil {
			return err
		}
		k.rel = rel
	}
	return nil
}

// relabelled gives the descriptions with the labels that Labels told; with older, unless they know others.
func (p *Parser) relabelled(types []TypeDescription, older bool) []TypeDescription {
	out, cloned := types, false
	for i := range types {
		now, ok := p.labels[types[i].OID]
		if !ok || older && slices.ContainsFunc(types[i].Labels, func(l string) bool { return !slices.Contains(now, l) }) {
			continue
		}
		if !cloned {
			out, cloned = slices.Clone(types), true
		}
		out[i].Labels = now
	}
	return out
}
