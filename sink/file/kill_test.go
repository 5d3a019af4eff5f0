//go:build unix && !solaris && !aix

package file

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/sinktest"
)

// The test binary runs itself as a child that writes, told so by these variables.
const (
	envRole = "FLO_FILE_TEST_ROLE"
	envDir  = "FLO_FILE_TEST_DIR"
	envFrom = "FLO_FILE_TEST_FROM"
)

func TestMain(m *testing.M) {
	role, dir := os.Getenv(envRole), os.Getenv(envDir)
	var err error
	switch role {
	case "":
		goleak.VerifyTestMain(m)
	case "writer":
		err = writeForever(dir)
	case "rotator":
		err = rotateUntilKilled(dir)
	case "full":
		err = writeUntilFull(dir)
	case "full rotated":
		err = writeUntilFull(dir, WithRotateSize(1000), WithNames("{table}-{seq}"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(t *testing.T, role, dir string, more ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), append(more, envRole+"="+role, envDir+"="+dir)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// writeForever writes transactions of all sizes, and says which ones are durable.
func writeForever(dir string) error {
	from, err := strconv.Atoi(os.Getenv(envFrom))
	if err != nil {
		return err
	}
	s := New(dir)
	for n := from; ; n++ {
		size := []int{10, 1000, 100_000}[n%3]
		if err := s.Write(context.Background(), batch(decode.LSN(n), 1+n%20, strings.Repeat("x", size))); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

func TestKilledWriterLeavesWholeLinesInOrder(t *testing.T) {
	seed := flotest.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	durable := 0 // the last transaction that the children were told is durable
	var healed int64
	for round := range 8 {
		// As a worker does: from behind the last checkpoint, which may be a little old.
		from := max(1, durable+1-rnd.IntN(3))
		cmd := child(t, "writer", dir, fmt.Sprintf("%s=%d", envFrom, from))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 1 + rnd.IntN(8) {
			if !lines.Scan() {
				t.Fatalf("round %d: the child ended: %v", round, cmd.Wait())
			}
			if durable, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
		}
		awaitGrowth(t, dir) // so that it is in the middle of a batch
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			if durable, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) {
			t.Fatalf("round %d: %v", round, err)
		}
		// The next opener heals; the dead child's lock is free.
		s := New(dir)
		if err := errors.Join(s.open(), s.single.open()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		healed += s.Healed()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkSequence(t, dir, durable)
	}
	t.Logf("%d transactions, %d torn bytes cut off", durable, healed)
}

// awaitGrowth returns as soon as the file has become longer.
func awaitGrowth(t *testing.T, dir string) {
	t.Helper()
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, Name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	for before, end := size(), time.Now().Add(time.Minute); size() == before; {
		if time.Now().After(end) {
			t.Fatal("the child has stopped writing")
		}
	}
}

// checkSequence wants all transactions up to durable in the file; each line stands right behind the one
// before it, or is a repeat that starts at a transaction's beginning.
func checkSequence(t *testing.T, dir string, durable int) {
	t.Helper()
	var at, top decode.Position
	for i, e := range entries(t, dir) {
		lsn, ordinal, _ := strings.Cut(e.ID, ":")
		var p decode.Position
		var err error
		if p.LSN, err = decode.ParseLSN(lsn); err != nil {
			t.Fatal(err)
		}
		if p.Ordinal, err = strconv.ParseUint(ordinal, 10, 64); err != nil {
			t.Fatal(err)
		}
		next := p.LSN == at.LSN && p.Ordinal == at.Ordinal+1
		begin := p.Ordinal == 1 && p.LSN <= top.LSN+1
		if !next && !begin {
			t.Fatalf("line %d: %s stands behind %s", i+1, p, at)
		}
		at = p
		if top.Compare(p) < 0 {
			top = p
		}
	}
	if want := (decode.Position{LSN: decode.LSN(durable), Ordinal: uint64(1 + durable%20)}); top.Compare(want) < 0 {
		t.Fatalf("the file ends at %s, but %s was durable", top, want)
	}
}

// writeUntilFull meets the end of the room that its file size limit leaves, gets more, and goes on.
func writeUntilFull(dir string, opts ...Option) error {
	signal.Ignore(syscall.SIGXFSZ) // then write(2) says EFBIG
	s, ctx := New(dir, opts...), context.Background()
	if err := s.Write(ctx, batch(1, 2, "x")); err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	tight := limit
	tight.Cur = 100_000
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &tight); err != nil {
		return err
	}
	big := batch(2, 5, strings.Repeat("y", 50_000))
	for range 2 {
		if err := s.Write(ctx, big); !errors.Is(err, syscall.EFBIG) {
			return fmt.Errorf("write into a full file: %v", err)
		}
	}
	if err := s.Write(ctx, batch(2, 1, "small")); err != nil {
		return fmt.Errorf("a batch that fits: %w", err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	if err := s.Write(ctx, batch(3, 5, strings.Repeat("y", 50_000))); err != nil {
		return err
	}
	return s.Close(ctx)
}

func TestFullDiskTearsNothing(t *testing.T) {
	dir := t.TempDir()
	if err := child(t, "full", dir).Run(); err != nil {
		t.Fatal(err)
	}
	rotated := t.TempDir()
	if err := child(t, "full rotated", rotated).Run(); err != nil {
		t.Fatal(err)
	}
	checkTidy(t, rotated)
	for name, list := range map[string][]sinktest.Entry{"one file": entries(t, dir), "many": all(t, rotated)} {
		var got []string
		for _, e := range list {
			got = append(got, e.ID)
		}
		if want := "0/1:1 0/1:2 0/2:1 0/3:1 0/3:2 0/3:3 0/3:4 0/3:5"; strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}
