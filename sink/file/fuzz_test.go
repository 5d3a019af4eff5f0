package file

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is left of a file ends with a whole object, and is left alone the next time.
func FuzzWholeObjects(f *testing.F) {
	line := framedLines.prefix + `insert"}` + framedLines.end
	pretty := framedPretty.prefix + `insert"` + framedPretty.end
	for _, seed := range []string{"", line, pretty, line + line[:9], pretty + pretty[:9], pretty + line, line + "\x00\x00", "{}\n", pretty + "}\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, fr := range []framing{framedLines, framedPretty, manifestFraming} {
			n, err := fr.whole(bytes.NewReader(data), int64(len(data)))
			if errors.Is(err, ErrNotOurs) {
				continue
			}
			if err != nil || n < 0 || n > int64(len(data)) || n > 0 && !bytes.HasSuffix(data[:n], []byte(fr.end)) {
				t.Fatalf("%d of %d bytes of %q, %v", n, len(data), data, err)
			}
			if again, err := fr.whole(bytes.NewReader(data), n); err != nil || again != n {
				t.Fatalf("%d bytes of %q, then %d, %v", n, data, again, err)
			}
		}
	})
}

// Whatever the pattern and the table are called, the file lies within the folder.
func FuzzNames(f *testing.F) {
	f.Add(DefaultNames, "public", "users")
	f.Add("{schema}/{table}/{time:2006-01-02}/{seq}", "..", ".")
	f.Add("{table}{seq}", "", "../x")
	f.Add("{schema}{table}/{seq}", ".", ".")
	f.Add("{schema}/{table}/{seq}", "", "")
	f.Fuzz(func(t *testing.T, pattern, schema, table string) {
		n, err := parseNames(pattern)
		if err != nil {
			return
		}
		path := n.path(tableKey{schema: schema, table: table}, time.Unix(0, 0), 1)
		if !filepath.IsLocal(filepath.FromSlash(path)) {
			t.Fatalf("%q", path)
		}
		for part := range strings.SplitSeq(path, "/") {
			if len(part) > len(pattern)*(maxNamePart+20) {
				t.Fatalf("%q", part)
			}
		}
	})
}
