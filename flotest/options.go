package flotest

import "maps"

// ServerOption changes a default of StartServer and NewServer.
type ServerOption func(*serverConfig)

type serverConfig struct {
	settings   map[string]string
	port       int
	binDir     string
	data       string
	initdbArgs []string
}

func serverDefaults() serverConfig {
	return serverConfig{settings: map[string]string{
		"wal_level":                 "logical",
		"max_wal_senders":           "30",
		"max_replication_slots":     "30",
		"max_connections":           "200",
		"max_prepared_transactions": "20",
		"max_worker_processes":      "16",
		"log_checkpoints":           "off",
		"log_line_prefix":           "%m [%p] %d ",
	}}
}

// WithSetting sets a server parameter. Defaults: wal_level logical, 30 walsenders and
// slots, 200 connections, 20 prepared transactions; fsync is on with StartServer and off
// with NewServer and Postgres (killing the server's processes loses nothing by that,
// only a power cut would).
func WithSetting(name, value string) ServerOption {
	return func(c *serverConfig) { c.settings[name] = value }
}

// WithOddSettings gives the server session defaults as unlike PostgreSQL's own as can
// be: time zone, date, interval, bytea, float and XML style. A program whose sessions
// don't set what they depend on shows it at once. NewServer and Postgres use it.
func WithOddSettings() ServerOption {
	return func(c *serverConfig) {
		maps.Copy(c.settings, map[string]string{
			"TimeZone":           "Asia/Kolkata",
			"DateStyle":          "SQL, DMY",
			"IntervalStyle":      "sql_standard",
			"bytea_output":       "escape",
			"extra_float_digits": "0",
			"xmloption":          "document",
		})
	}
}

// WithPort fixes the TCP port on 127.0.0.1. Default: a free one.
func WithPort(port int) ServerOption { return func(c *serverConfig) { c.port = port } }

// WithBinDir names the folder of the binaries. Default: FindBinaries.
func WithBinDir(dir string) ServerOption { return func(c *serverConfig) { c.binDir = dir } }

// WithData uses a data folder of the caller's: an existing cluster (a base backup, a
// copy, one that an earlier Server left), or a missing or empty folder to make one in.
// Close keeps it. Default: a temporary folder that goes with the server.
func WithData(dir string) ServerOption { return func(c *serverConfig) { c.data = dir } }

// WithInitdbArgs adds arguments to initdb, for example "--data-checksums" or
// "--wal-segsize=1". Default: UTF8, locale C.
func WithInitdbArgs(args ...string) ServerOption {
	return func(c *serverConfig) { c.initdbArgs = append(c.initdbArgs, args...) }
}
