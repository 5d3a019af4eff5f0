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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/sinktest"
)

// More of what a child is told; see TestMain.
const (
	envKind = "FLO_FILE_TEST_KIND"
	envStep = "FLO_FILE_TEST_STEP"
)

var rotatingKinds = map[string][]Option{
	"plain":  {WithRotateSize(2000)},
	"gzip":   {WithRotateSize(2000), WithGzip()},
	"tables": {WithRotateSize(2000), WithNames("{schema}/{table}/{seq}"), WithGzip()},
	"pretty": {WithRotateSize(2000), WithPretty(), WithEncoder(decode.Debezium("shop"))},
}

// crashTransactions is how many transactions a child writes if nothing kills it.
const crashTransactions = 5

// rotateUntilKilled writes transactions from a number on, and dies at a step, or at the end.
func rotateUntilKilled(dir string) error {
	from, err := strconv.Atoi(os.Getenv(envFrom))
	if err != nil {
		return err
	}
	last, err := strconv.Atoi(os.Getenv(envStep))
	if err != nil {
		return err
	}
	s := New(dir, rotatingKinds[os.Getenv(envKind)]...)
	steps := 0
	s.rotated.at = func(string) {
		if steps++; steps == last {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it dies before it goes on
		}
	}
	for n := from; last > 0 && n < from+crashTransactions || last == 0; n++ {
		if err := s.Write(context.Background(), batch(decode.LSN(n), 1+n%5, strings.Repeat("x", 100+n%3*1000))); err != nil {
			return err
		}
		fmt.Println(n)
	}
	return s.Close(context.Background())
}

// runRotation runs a child, kills it after a while if step is 0, and gives the last transaction that it
// said to be durable, and whether it came to its end.
func runRotation(t *testing.T, dir, kind string, from, step int, wait time.Duration) (durable int, ended bool) {
	t.Helper()
	cmd := child(t, "rotator", dir, fmt.Sprint(envFrom, "=", from), fmt.Sprint(envStep, "=", step), fmt.Sprint(envKind, "=", kind))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	durable = from - 1
	lines := bufio.NewScanner(out)
	for first := true; lines.Scan(); first = false {
		if durable, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if first && step == 0 {
			timer := time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return durable, true
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled():
		return durable, false
	}
	t.Fatal(err)
	return 0, false
}

// checkRotation looks at a folder behind a crash as a reader does, then lets a sink complete it and looks
// again. It gives what is complete.
func checkRotation(t *testing.T, dir, kind string, before []Entry, durable int) []Entry {
	t.Helper()
	debezium := kind == "pretty"
	list := manifestOf(t, dir, debezium)
	if len(list) < len(before) || !slices.Equal(list[:len(before)], before) {
		t.Fatalf("files that were complete have changed: %v\nnow %v", before, list)
	}
	s := New(dir, rotatingKinds[kind]...)
	if err := errors.Join(s.open(), s.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	list = manifestOf(t, dir, debezium)
	var listed []string
	at, top := 0, 0
	for _, e := range list {
		listed = append(listed, e.File)
		for _, p := range positions(t, dir, e, debezium) {
			if int(p.LSN) != at && p.Ordinal != 1 || int(p.LSN) > top+1 {
				t.Fatalf("%s: %s stands behind transaction %d", e.File, p, at)
			}
			at = int(p.LSN)
			top = max(top, at)
		}
	}
	if top < durable {
		t.Fatalf("the files end at %d, but %d was durable", top, durable)
	}
	slices.Sort(listed)
	if there := slices.Sorted(slices.Values(files(t, dir))); !slices.Equal(there, listed) {
		t.Fatalf("the folder holds %v\nthe manifest lists %v", there, listed)
	}
	return list
}

// manifestOf checks each file's bytes, checksum, rows and positions.
func manifestOf(t *testing.T, dir string, debezium bool) []Entry {
	t.Helper()
	if !debezium {
		return complete(t, dir)
	}
	list, err := ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		var real Entry
		if err := errors.Join(real.measure(filepath.Join(dir, e.File)), real.survey(filepath.Join(dir, e.File))); err != nil {
			t.Fatal(err)
		}
		if real.Bytes != e.Bytes || real.SHA256 != e.SHA256 || real.Rows != e.Rows || real.First != e.First || real.Last != e.Last || e.Last == "" {
			t.Fatalf("%+v\nis %+v", e, real)
		}
	}
	return list
}

func positions(t *testing.T, dir string, e Entry, debezium bool) (list []decode.Position) {
	t.Helper()
	var ids []sinktest.Entry
	if debezium {
		data, err := os.ReadFile(filepath.Join(dir, e.File))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(compact(t, data))) {
			ids = append(ids, sinktest.Entry{ID: identityOf([]byte(line))})
		}
	} else {
		ids = content(t, dir, e.File)
	}
	for _, id := range ids {
		lsn, ordinal, _ := strings.Cut(id.ID, ":")
		var p decode.Position
		var err1, err2 error
		p.LSN, err1 = decode.ParseLSN(lsn)
		p.Ordinal, err2 = strconv.ParseUint(ordinal, 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

func TestKilledAtEveryStepOfRotation(t *testing.T) {
	for kind := range rotatingKinds {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			durable, step := 0, 1
			var list []Entry
			for ended := false; !ended; step++ {
				durable, ended = runRotation(t, dir, kind, max(1, durable), step, 0)
				if step%3 != 0 && !ended {
					continue // the next child meets what this one left, and may die completing it
				}
				list = checkRotation(t, dir, kind, list, durable)
			}
			if len(list) < 20 || step < 20 {
				t.Errorf("%d steps, %d files", step, len(list))
			}
			t.Logf("killed %d times; %d transactions in %d files", step-2, durable, len(list))
		})
	}
}

func TestKilledAtAnyTimeOfRotation(t *testing.T) {
	seed := flotest.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for kind := range rotatingKinds {
		t.Run(kind, func(t *testing.T) {
			dir, durable := t.TempDir(), 0
			var list []Entry
			for range 6 {
				durable, _ = runRotation(t, dir, kind, max(1, durable+1-rnd.IntN(3)), 0, time.Duration(rnd.IntN(60_000))*time.Microsecond)
				list = checkRotation(t, dir, kind, list, durable)
			}
		})
	}
}
