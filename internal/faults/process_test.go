//go:build unix

package faults

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/pgflo/flo/internal/crashpoint"
)

// logTail is how much of a child's log is kept, in bytes.
const logTail = 64 << 10

// process is one life of a child.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{} // closed when it is gone and its pipes are read

	mu      sync.Mutex
	status  childStatus
	changed chan struct{} // closed and replaced at each status
	ending  bool          // killed or asked to stop: its end is no surprise
	err     error
}

// startProcess starts a test binary in a role. Its log goes to log; ended is called if it ends unasked. crash, if
// not empty, arms a crash point (crashpoint.Env): then its end is no surprise.
func startProcess(exe, role, crash string, cfg *childConfig, log io.Writer, ended func(error)) (*process, error) {
	config, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), envRole+"="+role, crashpoint.Env+"="+crash)
	cmd.Stderr = log
	// An interrupt at the terminal goes to the whole process group, and is for the campaign, not for a run under way.
	// When this process ends the child reads the end of its standard input; one that is stopped then is in an orphaned
	// group, and the kernel ends it by SIGHUP (POSIX, _exit).
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, stdin: stdin, exited: make(chan struct{}), changed: make(chan struct{}), ending: crash != ""}
	go p.read(stdout, ended)
	if _, err := stdin.Write(append(config, '\n')); err != nil && !errors.Is(err, syscall.EPIPE) {
		p.kill()
		return nil, err
	}
	return p, nil
}

func (p *process) read(stdout io.Reader, ended func(error)) {
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s childStatus
		if json.Unmarshal(lines.Bytes(), &s) != nil {
			continue // the line that a kill tore
		}
		p.mu.Lock()
		p.status = s
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
	err := p.cmd.Wait()
	p.stdin.Close()
	p.mu.Lock()
	p.err = err
	surprise := !p.ending
	p.mu.Unlock()
	if surprise {
		ended(fmt.Errorf("it ended unasked: %v", err))
	}
	close(p.exited)
}

// signal sends SIGKILL, SIGSTOP, SIGCONT.
func (p *process) signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// kill ends the process by SIGKILL, and returns its last status once it is gone.
func (p *process) kill() childStatus {
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	p.cmd.Process.Kill() // an error says that it is gone
	<-p.exited
	return p.last()
}

// stop asks the process to end in order. Its error is the exit's.
func (p *process) stop(ctx context.Context) error {
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	if _, err := io.WriteString(p.stdin, stopLine+"\n"); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("it did not stop: %w", context.Cause(ctx))
	}
}

func (p *process) last() childStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// await returns when cond is true of the status, or the process has ended.
func (p *process) await(ctx context.Context, what string, cond func(childStatus) bool) error {
	for {
		p.mu.Lock()
		s, changed := p.status, p.changed
		p.mu.Unlock()
		if s.Ready && cond(s) {
			return nil
		}
		select {
		case <-changed:
		case <-p.exited:
			return fmt.Errorf("it ended before %s", what)
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s (last status %+v): %w", what, s, context.Cause(ctx))
		}
	}
}

// member is a part of the pipeline that lives several times: a process that is started, killed and
// started again.
type member struct {
	role string
	exe  string // the binary
	cfg  childConfig
	fail func(error) // ends the test
	log  *tail

	mu     sync.Mutex
	now    *process
	mayEnd bool // its end is part of the test
	kills  int
	phases map[string]int // what it was doing when it was killed
}

func (m *member) start() error { return m.startArmed("") }

// startArmed starts a life that a crash point ends, or pauses.
func (m *member) startArmed(crash string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	fmt.Fprintf(m.log, "--- start %s %s\n", time.Now().UTC().Format("15:04:05.000"), crash)
	p, err := startProcess(m.exe, m.role, crash, &m.cfg, m.log, m.ended)
	if err != nil {
		return fmt.Errorf("%s: %w", m.cfg.Name, err)
	}
	m.now = p
	return nil
}

// ended is called when a life ended unasked.
func (m *member) ended(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.mayEnd {
		m.fail(fmt.Errorf("%s: %w", m.cfg.Name, err))
	}
}

func (m *member) process() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// kill ends the present life.
func (m *member) kill() childStatus {
	s := m.process().kill()
	m.mu.Lock()
	defer m.mu.Unlock()
	fmt.Fprintf(m.log, "--- killed %s\n", time.Now().UTC().Format("15:04:05.000"))
	m.kills++
	phase := string(s.Phase)
	if phase == "" {
		phase = "before its first status"
	}
	m.phases[phase]++
	return s
}

func (m *member) await(ctx context.Context, what string, cond func(childStatus) bool) error {
	if err := m.process().await(ctx, what, cond); err != nil {
		return fmt.Errorf("%s: %w", m.cfg.Name, err)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct {
	all *os.File // gets everything, unless it is nil
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all != nil {
		t.all.Write(b) // for a reader's eyes: an error doesn't matter
	}
	t.buf = append(t.buf, b...)
	if len(t.buf) > 2*logTail {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-logTail:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
