package file

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pgflo/flo/decode"
)

// Defaults of the options.
const (
	// DefaultFileMode of a file when it is made, before the umask.
	DefaultFileMode fs.FileMode = 0o640
	// DefaultNames is the pattern of WithNames.
	DefaultNames = "changes-{time}-{seq}"
	// DefaultRotateSize is WithRotateSize's, in bytes, where files are rotated at all.
	DefaultRotateSize = 64 << 20
)

// ErrInvalidOption: New was given something that the sink can't use. The first Write says so.
var ErrInvalidOption = errors.New("file sink: invalid option")

type config struct {
	mode    fs.FileMode
	encode  decode.Encoder
	pretty  bool
	rotate  bool // many files
	names   string
	maxSize int64
	maxAge  time.Duration
	gzip    bool
}

func defaults() config {
	return config{mode: DefaultFileMode, names: DefaultNames, maxSize: DefaultRotateSize}
}

func (c *config) validate() error {
	if c.maxSize < 1 {
		return fmt.Errorf("%w: WithRotateSize(%d): must be at least 1 byte", ErrInvalidOption, c.maxSize)
	}
	if c.maxAge < 0 {
		return fmt.Errorf("%w: WithRotateAge(%s): must not be negative", ErrInvalidOption, c.maxAge)
	}
	_, err := parseNames(c.names)
	return err
}

func (c *config) framing() framing {
	if c.pretty {
		return framedPretty
	}
	return framedLines
}

// Option changes what New makes.
type Option func(*config)

// WithFileMode is the mode of the files when they are made, before the umask. Default DefaultFileMode.
func WithFileMode(mode fs.FileMode) Option { return func(c *config) { c.mode = mode } }

// WithEncoder is the envelope of a change, for example decode.Debezium("shop"). Default, and what nil
// means: decode.JSON.
func WithEncoder(e decode.Encoder) Option { return func(c *config) { c.encode = e } }

// WithPretty indents the objects over several lines, for people; the files are named .json then.
func WithPretty() Option { return func(c *config) { c.pretty = true } }

// WithRotateSize begins another file when one has reached a size, in bytes before compression. It is
// looked at behind each batch, so files are larger by up to one. Default DefaultRotateSize, if another
// option asks for rotation; otherwise there is one file, which only grows.
func WithRotateSize(bytes int64) Option {
	return func(c *config) { c.maxSize, c.rotate = bytes, true }
}

// WithRotateAge begins another file when one is that old, and completes the old one by then also if
// nothing more comes. Default, and 0: no limit.
func WithRotateAge(d time.Duration) Option {
	return func(c *config) { c.maxAge, c.rotate = d, true }
}

// WithNames names the files, below the sink's folder, without their ending (.jsonl or .json, and .gz). A
// slash makes folders. Default DefaultNames. In the pattern
//
//	{schema} {table}  of the changes: each table has files of its own then. Bytes other than letters,
//	                  digits, '_', '-' and '.' are written %XX. Changes of no table (messages, DDL) go to
//	                  a file whose table and schema are "+other"; a TRUNCATE to each of its tables.
//	{time}            when the file was begun, UTC: 20240506T070809Z
//	{time:layout}     the same in a layout of package time, for example {time:2006-01-02}
//	{seq}             a number that rises with each file of the folder; it has to be there
func WithNames(pattern string) Option {
	return func(c *config) { c.names, c.rotate = pattern, true }
}

// WithGzip compresses each file when it is complete, not before.
func WithGzip() Option { return func(c *config) { c.gzip, c.rotate = true, true } }
