package source

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgflo/flo/decode"
)

// piped is a Stream whose server is the test, under a fake clock.
func piped(ctx context.Context) (s *Stream, server net.Conn) {
	client, server := net.Pipe()
	paced := &pacedConn{Conn: client}
	paced.begin()
	s = &Stream{
		conn: paced, paced: paced, ctx: ctx, frontend: pgproto3.NewFrontend(paced, paced),
		interval: 10 * time.Second, received: 100, flushed: 100,
	}
	paced.due = time.Now().Add(s.interval)
	s.detach = context.AfterFunc(ctx, paced.interrupt)
	return s, server
}

// status is one message of ours as the server reads it.
type status struct {
	at           time.Duration
	write, flush decode.LSN
}

// listen reads status messages until the connection ends.
func listen(server net.Conn, got chan<- status) {
	defer close(got)
	began := time.Now()
	for b := make([]byte, statusLen); ; {
		if _, err := io.ReadFull(server, b); err != nil {
			return
		}
		got <- status{time.Since(began), decode.LSN(binary.BigEndian.Uint64(b[6:])), decode.LSN(binary.BigEndian.Uint64(b[14:]))}
	}
}

// copyData frames a payload.
func copyData(payload []byte) []byte {
	b := append([]byte{'d'}, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[1:], uint32(len(payload)+4))
	return append(b, payload...)
}

// xlogData is a frame at a position.
func xlogData(lsn decode.LSN, data []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'w'}, uint64(lsn))
	b = binary.BigEndian.AppendUint64(b, uint64(lsn))
	return copyData(append(append(b, make([]byte, 8)...), data...))
}

// keepalive of the server.
func keepalive(lsn decode.LSN, reply byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'k'}, uint64(lsn))
	return copyData(append(append(b, make([]byte, 8)...), reply))
}

func TestFeedbackInTheMiddleOfAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, server := piped(t.Context())
		got := make(chan status, 100)
		go listen(server, got)
		go func() {
			message := xlogData(200, make([]byte, 600))
			for i := range message { // a byte every 100 ms: a minute for the whole
				time.Sleep(100 * time.Millisecond)
				if _, err := server.Write(message[i : i+1]); err != nil {
					return
				}
			}
		}()
		e, err := s.Next(time.Hour)
		if err != nil || e.Kind != Frame || len(e.Data) != 600 || e.WALEnd != 200 {
			t.Fatalf("%v of %d bytes, %v", e.Kind, len(e.Data), err)
		}
		s.conn.Close()
		n := 0
		for st := range got {
			n++
			if want := time.Duration(n) * 10 * time.Second; st.at < want || st.at > want+time.Second || st.write != 100 || st.flush != 0 {
				t.Errorf("status %d: %+v", n, st)
			}
		}
		if n != 6 {
			t.Errorf("%d statuses in a minute", n)
		}
	})
}

func TestRepliesUnderLoadAndWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, server := piped(t.Context())
		got := make(chan status, 100)
		go listen(server, got)
		go func() { // frames without a pause, then a keepalive that wants an answer
			for i := range 300 {
				time.Sleep(100 * time.Millisecond)
				_, _ = server.Write(xlogData(decode.LSN(200+i), []byte("x")))
			}
			_, _ = server.Write(keepalive(1000, 1))
		}()
		frames := 0
		for s.Received() < 1000 {
			e, err := s.Next(time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == Frame {
				frames++
			}
		}
		s.Confirm(900)
		if err := s.Tick(time.Now()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.conn.Close()
		var all []status
		for st := range got {
			all = append(all, st)
		}
		if frames != 300 || len(all) < 5 {
			t.Fatalf("%d frames, statuses %+v", frames, all)
		}
		asked, confirm, back := all[len(all)-3], all[len(all)-2], all[len(all)-1]
		if asked.write != 1000 || asked.flush != 0 || confirm.write != 1000 || confirm.flush != 900 || back.write != 1000 || back.flush != 0 || back.at != confirm.at {
			t.Errorf("asked %+v, confirmed %+v, then %+v", asked, confirm, back)
		}
	})
}

func TestIdleAndPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, server := piped(ctx)
		s.SetLazy(true)
		go listen(server, make(chan status, 100))
		for _, wait := range []time.Duration{0, time.Second, 25 * time.Second} {
			began := time.Now()
			e, err := s.Next(wait)
			if took := time.Since(began); err != nil || e.Kind != Idle || took < wait || took > wait+time.Millisecond {
				t.Errorf("Next(%v) gave %v after %v: %v", wait, e.Kind, took, err)
			}
		}
		go func() { _, _ = server.Write(xlogData(200, []byte("x"))) }()
		began := time.Now()
		if e, err := s.Next(time.Second); err != nil || e.Kind != Frame || time.Since(began) != 0 {
			t.Errorf("an idle source's change came as %v after %v: %v", e.Kind, time.Since(began), err)
		}
		cancel()
		synctest.Wait()
		if _, err := s.Next(time.Hour); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end of the context: %v", err)
		}
		s.conn.Close()
	})
}

func TestBrokenMessagesAreErrors(t *testing.T) {
	for name, message := range map[string][]byte{
		"empty": copyData(nil), "short XLogData": copyData([]byte("w1234567")), "short keepalive": copyData([]byte("k123")),
		"unknown": copyData([]byte("z")), "a foreign message": {'T', 0, 0, 0, 6, 0, 0}, "a length below 4": {'d', 0, 0, 0, 3}, "end": nil,
	} {
		s, server := piped(t.Context())
		go func() {
			_, _ = server.Write(message)
			server.Close()
		}()
		if e, err := s.Next(limit); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, %v", name, e, err)
		}
		s.closed = true
		s.detach()
		s.conn.Close()
	}
}
