package flotest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrStopped is returned by methods that need a running server.
var ErrStopped = errors.New("flotest: the server is not running")

// StopMode says how Stop ends a server, as pg_ctl's -m does:
// https://www.postgresql.org/docs/current/server-shutdown.html
type StopMode int

const (
	// Smart waits until all clients are gone.
	Smart StopMode = iota
	// Fast ends the clients' sessions, waits for walsenders to catch up, checkpoints.
	Fast
	// Immediate ends without a checkpoint: the next start recovers from WAL.
	Immediate
)

func (m StopMode) signal() syscall.Signal {
	switch m {
	case Smart:
		return sigSmart
	case Fast:
		return sigFast
	default:
		return sigImmediate
	}
}

// pollEvery is how often a condition outside the process is looked at.
const pollEvery = 5 * time.Millisecond

// Start starts a stopped server again: same folder, port, password. It returns when the
// server accepts connections.
func (s *Server) Start(ctx context.Context) error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	p, err := s.launch()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !s.ready(p.cmd.Process.Pid) {
		select {
		case <-tick.C:
		case <-p.exited:
			s.setProc(nil)
			return &exitError{p.cmd.ProcessState, s.Log()}
		case <-ctx.Done():
			err := fmt.Errorf("flotest: the server didn't start in time: %w; its log ends:\n%s", ctx.Err(), s.Log())
			return errors.Join(err, s.kill())
		}
	}
	return nil
}

// launch starts the postmaster. The caller holds mu.
func (s *Server) launch() (*process, error) {
	if s.closed {
		return nil, fmt.Errorf("%w: it is closed", ErrStopped)
	}
	if s.proc != nil && !s.proc.gone() {
		return nil, errors.New("flotest: the server runs already")
	}
	if err := s.writeSettings(); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("flotest: log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.binDir, "postgres"), "-D", s.data)
	cmd.Dir = s.data
	cmd.Env = toolEnv(nil)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = s.acc.attr()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("flotest: start postgres: %w", err)
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	s.proc = p
	go p.reap()
	return p, nil
}

// ready reads postmaster.pid as pg_ctl does: line 1 is the pid, line 8 the state, since
// PostgreSQL 10 (src/include/utils/pidfile.h).
func (s *Server) ready(pid int) bool {
	b, err := os.ReadFile(filepath.Join(s.data, "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) < 8 || lines[0] != strconv.Itoa(pid) {
		return false
	}
	state := strings.TrimSpace(lines[7])
	return state == "ready" || state == "standby"
}

func (s *Server) setProc(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc = p
}

func (s *Server) running() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// Stop stops the server and returns how long that took. If ctx ends first the server is
// still stopping.
func (s *Server) Stop(ctx context.Context, mode StopMode) (time.Duration, error) {
	s.life.Lock()
	defer s.life.Unlock()
	p := s.running()
	if p == nil {
		return 0, ErrStopped
	}
	if p.gone() {
		s.setProc(nil)
		return 0, fmt.Errorf("%w: it ended by itself: %s", ErrStopped, p.cmd.ProcessState)
	}
	start := time.Now()
	if err := s.signal(mode.signal()); err != nil {
		return 0, err
	}
	select {
	case <-p.exited:
		s.setProc(nil)
		return time.Since(start), nil
	case <-ctx.Done():
		return time.Since(start), fmt.Errorf("flotest: the server is still stopping: %w", ctx.Err())
	}
}

// Kill ends the postmaster and all its children by SIGKILL, as a crash of the machine
// would, but for the page cache. It returns when they are gone; Start recovers.
func (s *Server) Kill() error {
	s.life.Lock()
	defer s.life.Unlock()
	return s.kill()
}

// killTimeout bounds the wait for killed processes to go: one in an uninterruptible
// system call goes late.
const killTimeout = 30 * time.Second

// kill does Kill; the caller holds life.
func (s *Server) kill() error {
	p := s.running()
	if p == nil {
		return ErrStopped
	}
	if p.gone() {
		s.setProc(nil)
		return nil
	}
	// A frozen postmaster forks no more while its children are listed. Each child leads a
	// session of its own (src/backend/utils/init/miscinit.c), so no group reaches them.
	if err := s.signal(sigFreeze); err != nil {
		return err
	}
	kids, err := childrenOf(p.cmd.Process.Pid)
	err = errors.Join(err, p.cmd.Process.Kill())
	for _, k := range kids {
		if e := signalPID(k, syscall.SIGKILL); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("flotest: kill %d: %w", k, e))
		}
	}
	<-p.exited // SIGKILL can't be refused
	s.setProc(nil)
	deadline := time.Now().Add(killTimeout)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for _, k := range kids {
		for alive(k) {
			if time.Now().After(deadline) {
				return errors.Join(err, fmt.Errorf("flotest: killed server process %d is still there", k))
			}
			<-tick.C
		}
	}
	return err
}

// childrenOf lists the direct children of a process, all of PostgreSQL's there are. ps
// is everywhere but in small containers, and those are Linux with a /proc.
func childrenOf(pid int) ([]int, error) {
	if kids, ok := childrenFromProc(pid); ok {
		return kids, nil
	}
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("flotest: list processes: %w", err)
	}
	var kids []int
	for line := range strings.Lines(string(out)) {
		var k, parent int
		if n, _ := fmt.Sscan(line, &k, &parent); n == 2 && parent == pid {
			kids = append(kids, k)
		}
	}
	return kids, nil
}

func childrenFromProc(pid int) (kids []int, ok bool) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		return nil, false
	}
	for _, path := range stats {
		_, parent, ok := procStat(path)
		if !ok || parent != pid {
			continue
		}
		if k, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			kids = append(kids, k)
		}
	}
	return kids, true
}

// procStat reads state and parent from a /proc/…/stat file (proc(5): the command, in
// parentheses, may hold anything, so fields count from its last parenthesis).
func procStat(path string) (state string, parent int, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", 0, false
	}
	text := string(b)
	n, _ := fmt.Sscan(text[strings.LastIndexByte(text, ')')+1:], &state, &parent)
	return state, parent, n == 2
}

// alive reports whether a process still has its resources. A zombie has none, and stays
// for ever where nobody reaps orphans.
func alive(pid int) bool {
	if state, _, ok := procStat(fmt.Sprintf("/proc/%d/stat", pid)); ok {
		return state != "Z" && state != "X"
	}
	return !errors.Is(signalPID(pid, 0), syscall.ESRCH)
}

// Reload makes the server read its configuration again and returns when new sessions
// see it. Sessions that are open see it at their next statement.
func (s *Server) Reload(ctx context.Context) error {
	before, err := s.loadTime(ctx)
	if err != nil {
		return err
	}
	if err := s.signal(sigReload); err != nil {
		return err
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		now, err := s.loadTime(ctx)
		if err != nil {
			return err
		}
		if now.After(before) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("flotest: reload: %w", ctx.Err())
		}
	}
}

// loadTime asks a new session when its configuration was read: the postmaster hands its
// own down.
func (s *Server) loadTime(ctx context.Context) (at time.Time, err error) {
	err = s.admin(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, "SELECT pg_catalog.pg_conf_load_time()").Scan(&at)
	})
	return at, err
}

// admin runs f with a connection to the database postgres.
func (s *Server) admin(ctx context.Context, f func(*pgx.Conn) error) error {
	return withConn(ctx, s.URL("postgres"), f)
}

// Close stops the server, at once if its data goes with it, else with a checkpoint, and
// removes what is temporary. Calling it again does nothing.
func (s *Server) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	p := s.proc
	s.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	if p != nil {
		errs = append(errs, s.end(p))
	}
	switch {
	case s.guard != nil:
		errs = append(errs, s.guard.release())
	case s.base != "":
		errs = append(errs, os.RemoveAll(s.base))
	}
	return errors.Join(errs...)
}

// end stops p for good, and kills it when it won't.
func (s *Server) end(p *process) error {
	mode := Immediate
	if s.keepData {
		mode = Fast
	}
	err := s.signal(mode.signal())
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-p.exited:
		s.setProc(nil)
		return err
	case <-time.After(killTimeout):
		return errors.Join(err, s.kill())
	}
}
