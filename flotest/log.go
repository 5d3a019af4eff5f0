package flotest

import (
	"io"
	"os"
	"path/filepath"
	"strings"
)

// logTail bounds, in bytes, what Log returns.
const logTail = 32 << 10

func (s *Server) logPath() string { return filepath.Join(s.base, "log") }

// Log returns the end of the server's log, up to 32 KiB; "" after Close.
func (s *Server) Log() string { return s.logSince(0) }

// logSince returns the log from an offset on, up to logTail bytes of its end.
func (s *Server) logSince(offset int64) string {
	f, err := os.Open(s.logPath())
	if err != nil {
		return ""
	}
	defer f.Close()
	offset = max(offset, s.logSize()-logTail)
	b, _ := io.ReadAll(io.NewSectionReader(f, offset, logTail)) // what could be read is what there is to show
	return string(b)
}

// logOf leaves out what a log says of other tests' databases.
func logOf(database, log string) string {
	var out strings.Builder
	mine := true
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, "\t") { // not the rest of a message
			mine = strings.Contains(line, database) || !strings.Contains(line, databasePrefix)
		}
		if mine {
			out.WriteString(line)
		}
	}
	return out.String()
}

// logSize is 0 where there is no log, of a given server for example.
func (s *Server) logSize() int64 {
	if s == nil {
		return 0
	}
	fi, err := os.Stat(s.logPath())
	if err != nil {
		return 0
	}
	return fi.Size()
}
