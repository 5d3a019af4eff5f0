package pgsession

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ParseConfig is pgx.ParseConfig whose error holds nothing of the connection string: pgx redacts
// passwords as well as it can, but a string that it cannot parse does not say where its password is, and
// its error carries the whole string besides. The error says what kind of thing is wrong, in fixed words.
func ParseConfig(connString string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(connString)
	if err != nil {
		return nil, errors.New("the connection string cannot be parsed: " + parseFault(err))
	}
	return cfg, nil
}

// parseFaults are what pgx says of a connection string, up to where it quotes the string's own words.
var parseFaults = [...]struct{ begins, means string }{
	{"failed to parse as URL", "it is not a URL (percent-encode what is neither a letter nor a digit in user and password)"},
	{"failed to parse as keyword/value", "it is not keywords and values (quote values that have spaces, as in key='a b')"},
	{"failed to read service", "the service file cannot be read, or has no such service"},
	{"failed to configure TLS", "TLS cannot be configured from its ssl settings"},
	{"invalid port", "a port is not a number from 1 to 65535"},
	{"could not match", "there are not as many ports as hosts"},
	{"invalid connect_timeout", "connect_timeout is not a number of seconds"},
	{"invalid sslcertmode", "sslcertmode is unknown"},
	{"invalid require_auth", "require_auth is unknown"},
	{"unknown target_session_attrs", "target_session_attrs is unknown"},
	{"unknown channel_binding", "channel_binding is unknown"},
	{"invalid min_protocol_version", "min_protocol_version is unknown"},
	{"invalid max_protocol_version", "max_protocol_version is unknown"},
	{"min_protocol_version cannot", "min_protocol_version is greater than max_protocol_version"},
	{"cannot parse statement_cache_capacity", "statement_cache_capacity is not a number"},
	{"cannot parse description_cache_capacity", "description_cache_capacity is not a number"},
	{"invalid default_query_exec_mode", "default_query_exec_mode is unknown"},
}

// parseCauses are causes that quote nothing.
var parseCauses = [...]string{
	"sslmode is invalid", `both "sslcert" and "sslkey" are required`, "unable to add CA to cert pool",
	"unable to find sslpassword", "failed to decode sslkey", "forbidden NUL byte in connection string",
	"unterminated quoted string in connection info string",
}

func parseFault(err error) string {
	var parse *pgconn.ParseConfigError
	if !errors.As(err, &parse) {
		return "its form is unknown"
	}
	// What pgx says behind the string: the same error without a message is what stands in front.
	said := strings.TrimPrefix(parse.Error(), pgconn.NewParseConfigError(parse.ConnString, "", nil).Error())
	fault := "it has a setting that is not understood"
	for _, f := range parseFaults {
		if strings.HasPrefix(said, f.begins) {
			fault = f.means
			break
		}
	}
	cause := errors.Unwrap(parse)
	if cause == nil {
		return fault
	}
	for _, c := range parseCauses {
		if cause.Error() == c {
			return fault + ": " + c
		}
	}
	var path *fs.PathError // its path is the string's
	if errors.As(cause, &path) {
		return fault + ": " + path.Op + ": " + path.Err.Error()
	}
	return fault
}
