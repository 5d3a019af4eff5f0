//go:build unix

package faults

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgflo/flo/internal/faults/ledger"
)

// said is a process's output, and tells when there is more of it.
type said struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.more)
	s.more = make(chan struct{})
	return s.buf.Write(b)
}

func (s *said) text() (string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String(), s.more
}

// campaignOf starts a campaign in a process group of its own, as a shell does, and waits until a seed's run has begun and
// has said the words.
func campaignOf(t *testing.T, ctx context.Context, path, words string) (cmd *exec.Cmd, ended <-chan error, out *said) {
	t.Helper()
	out = &said{more: make(chan struct{})}
	cmd = exec.Command(childBinary(t), "-test.run=^TestCampaign$", "-test.v", "-campaign=10m", "-lanes=1", "-ledger="+path,
		"-seed=540", "-faults=3") // a short run
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = out, out, &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() }) // an error says that it is gone
	for {
		text, more := out.text()
		if strings.Contains(text, words) {
			return cmd, done, out
		}
		select {
		case <-more:
		case err := <-done:
			t.Fatalf("it ended before it said %q: %v\n%s", words, err, text)
		case <-ctx.Done():
			t.Fatalf("it did not say %q:\n%s", words, text)
		}
	}
}

// An interrupt at the terminal goes to the campaign's whole process group: the run under way is finished and recorded. A
// second one ends the campaign within a run, of which nothing is recorded, and the next campaign takes that seed.
func TestACampaignCanBeInterruptedAndTakenUpAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), runLimit+time.Minute)
	defer cancel()
	path := filepath.Join(t.TempDir(), "ledger.jsonl")
	end := func(ended <-chan error, out *said) error {
		t.Helper()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			text, _ := out.text()
			t.Fatalf("it did not end:\n%s", text)
			return nil
		}
	}
	recorded := func() {
		t.Helper()
		all, err := ledger.Read(path)
		must(t, err)
		if len(all) != 1 || all[0].Seed != 540 || all[0].Result != ledger.OK || all[0].Kills == 0 {
			t.Fatalf("the ledger has %+v, want the first seed's run alone", all)
		}
	}

	cmd, ended, out := campaignOf(t, ctx, path, " s:  0 ") // the first fault
	must(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGINT))
	if err := end(ended, out); err != nil {
		text, _ := out.text()
		t.Fatalf("an interrupted campaign ended with %v:\n%s", err, text)
	}
	recorded()

	cmd, ended, out = campaignOf(t, ctx, path, "/seed=541")
	for { // until one that arrives behind the first was handled
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
			break
		}
		select {
		case err := <-ended:
			if err == nil {
				t.Error("it ended well within a run")
			}
			recorded()
			return
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("a second interrupt did not end it")
		}
	}
	end(ended, out)
	recorded()
}
