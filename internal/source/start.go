package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pgsession"
)

// StreamConfig of StartStream.
type StreamConfig struct {
	Slot         string
	Publications []string // names, all of them exist
	// From is where to go on: the end LSN of the last transaction that is safe. Transactions whose
	// commit LSN is below it are not sent again.
	From decode.LSN
	// Since, if it is below From, is where to ask the server to begin: what has been published from there on is
	// sent once more. The slot's own position still holds where it is higher.
	Since decode.LSN
	// System, from Identify: WalSenderTimeout bounds the feedback's interval; with an empty one the
	// stream asks for itself.
	System System
	// Streaming asks for large transactions before they end, from PostgreSQL 14 on: as blocks between Stream
	// Start and Stream Stop. Before that it is ignored.
	Streaming bool
	// StatusInterval of the feedback; default 10 s, and never more than a quarter of wal_sender_timeout.
	StatusInterval time.Duration
}

// StartStream opens the replication connection and starts streaming. ctx bounds the start, and ends the
// stream: a Next that waits returns at once with ctx's error.
//
// The errors wrap ErrSlotMissing, ErrSlotLost, ErrSlotMismatch, ErrSlotActive (a predecessor's walsender
// lives on for up to wal_sender_timeout: try again), or ErrSlotAhead: PostgreSQL silently starts at the
// slot's own position if that is higher than From, so that is compared first.
func (c Config) StartStream(ctx context.Context, sc StreamConfig) (*Stream, error) {
	var paced *pacedConn
	conn, err := c.connectReplication(ctx, func(cfg *pgconn.Config) {
		dial := cfg.DialFunc
		cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			// The last one dialled is the one in use.
			paced = &pacedConn{Conn: conn}
			return paced, nil
		}
	})
	if err != nil {
		return nil, err
	}
	s, err := c.start(ctx, conn, paced, sc)
	if err != nil {
		hangUp(ctx, conn)
		_ = paced.Close() // a hijacked connection is not conn's any more
		return nil, c.explain(ctx, sc.Slot, err)
	}
	return s, nil
}

// start checks the slot and begins to stream on conn.
func (c Config) start(ctx context.Context, conn *pgconn.PgConn, paced *pacedConn, sc StreamConfig) (*Stream, error) {
	system := sc.System
	if system.ID == "" {
		var err error
		if system, err = identify(ctx, conn); err != nil {
			return nil, err
		}
	}
	info, err := checkSlot(ctx, conn, sc, system)
	if err != nil {
		return nil, err
	}
	if err := conn.SyncConn(ctx); err != nil {
		return nil, fmt.Errorf("source: starting the stream: %w", err)
	}
	own, err := conn.Hijack()
	if err != nil {
		return nil, fmt.Errorf("source: starting the stream: %w", err)
	}
	s := &Stream{
		conn: own.Conn, paced: paced, ctx: ctx,
		// The connection is quiet and nothing is buffered: a fresh frontend reads without pgconn's
		// background reader between.
		frontend: pgproto3.NewFrontend(own.Conn, own.Conn),
		interval: interval(sc.StatusInterval, system.WalSenderTimeout),
		received: sc.From, flushed: info.ConfirmedFlush,
	}
	s.paced.begin()
	s.paced.due = time.Now().Add(startTimeout)
	s.detach = context.AfterFunc(ctx, s.paced.interrupt)
	if err := s.begin(startCommand(sc, system.Version)); err != nil {
		s.detach()
		return nil, err
	}
	if err := s.reply(time.Now()); err != nil {
		s.detach()
		return nil, err
	}
	return s, nil
}

// begin is the position to ask for.
func (sc *StreamConfig) begin() decode.LSN {
	if sc.Since != 0 {
		return min(sc.Since, sc.From)
	}
	return sc.From
}

// startTimeout bounds the server's answer to START_REPLICATION.
const startTimeout = 60 * time.Second

// begin sends START_REPLICATION and waits until the server streams.
func (s *Stream) begin(command string) error {
	s.frontend.SendQuery(&pgproto3.Query{String: command})
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if err := s.frontend.Flush(); err != nil {
		return err
	}
	s.paced.wait = startTimeout
	for {
		msg, err := s.frontend.Receive()
		if err != nil {
			if ctxErr := s.ctx.Err(); ctxErr != nil {
				return ctxErr
			}
			return err
		}
		switch m := msg.(type) {
		case *pgproto3.CopyBothResponse:
			return nil
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("source: starting the stream: %w", pgconn.ErrorResponseToPgError(m))
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		default:
			return fmt.Errorf("unexpected message %T", msg)
		}
	}
}

// StreamingVersion is the first that can send a transaction before it ends, as server_version_num.
const StreamingVersion = 140000

// startCommand is START_REPLICATION with the options that the server's version knows.
// https://www.postgresql.org/docs/current/protocol-logical-replication.html
func startCommand(sc StreamConfig, version int) string {
	quoted := make([]string, len(sc.Publications))
	for i, name := range sc.Publications {
		quoted[i] = names.Quote(name)
	}
	var protocol string
	switch {
	case version >= 160000:
		protocol = "4"
	case version >= 150000:
		protocol = "3"
	case version >= 140000:
		protocol = "2"
	default:
		protocol = "1"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "START_REPLICATION SLOT %s LOGICAL %s (proto_version '%s', publication_names '%s'",
		names.Quote(sc.Slot), sc.begin(), protocol, strings.ReplaceAll(strings.Join(quoted, ","), "'", "''"))
	if version >= 140000 {
		b.WriteString(", messages 'true'")
	}
	if sc.Streaming && version >= StreamingVersion {
		b.WriteString(", streaming 'on'")
	}
	b.WriteString(")")
	return b.String()
}

// checkSlot reads the slot on the replication connection itself and compares it with what is wanted.
func checkSlot(ctx context.Context, conn *pgconn.PgConn, sc StreamConfig, system System) (SlotInfo, error) {
	rows, err := query(ctx, conn, slotQuery(pgsession.Version(conn), sc.Slot))
	if err != nil {
		return SlotInfo{}, fmt.Errorf("source: reading slot %q: %w", sc.Slot, err)
	}
	info, err := scanSlot(rows, sc.Slot)
	if err != nil {
		return info, err
	}
	switch {
	case info.Lost():
		return info, info.lostError()
	case info.Plugin != plugin:
		return info, fmt.Errorf("source: %w: slot %q is of output plugin %q, not %s: choose another slot name",
			ErrSlotMismatch, sc.Slot, info.Plugin, plugin)
	case info.Database != system.Database:
		return info, fmt.Errorf("source: %w: slot %q is of database %q, not %q: choose another slot name",
			ErrSlotMismatch, sc.Slot, info.Database, system.Database)
	case info.ConfirmedFlush > sc.From:
		return info, fmt.Errorf("source: %w: slot %q was confirmed up to %s, the pipeline stands at %s: what lies between can't be read again; copy afresh (WithResync and a new token, or Drop)",
			ErrSlotAhead, sc.Slot, info.ConfirmedFlush, sc.From)
	}
	return info, nil
}

// explain gives a refusal that goes by several causes its type, by looking at the slot once more.
func (c Config) explain(ctx context.Context, slot string, err error) error {
	switch pgsession.SQLState(err) {
	case sqlUndefined:
		return fmt.Errorf("source: %w: %q no longer exists, and changes may be missing: copy afresh (WithResync and a new token, or Drop): %w", ErrSlotMissing, slot, err)
	case sqlInUse, sqlUndefinedFile, sqlPrerequisite:
	default:
		return err
	}
	conn, connErr := c.Connect(ctx)
	if connErr != nil {
		return err
	}
	defer hangUp(ctx, conn)
	info, slotErr := c.Slot(ctx, conn, slot)
	switch {
	case slotErr != nil:
		return errors.Join(slotErr, err)
	case info.Lost() || pgsession.SQLState(err) == sqlUndefinedFile:
		return errors.Join(info.lostError(), err)
	case pgsession.SQLState(err) == sqlInUse:
		return activeError(info, err)
	}
	return err
}
