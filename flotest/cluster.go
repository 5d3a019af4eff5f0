package flotest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// passwordFile keeps the superuser's password inside the data folder, where it goes
// along with copies and base backups, so that WithData finds it.
const passwordFile = "flotest.password"

// settingsFile holds the server's settings, included at the end of postgresql.conf.
const settingsFile = "flotest.conf"

// superuser is the role that initdb makes, and that URLs name.
const superuser = "postgres"

// initCluster runs initdb in the folder data. Nothing is synced: the folder is a
// throwaway or is synced by the server that runs on it.
func initCluster(ctx context.Context, acc account, bin, data string, args []string) error {
	password := rand.Text()
	pw := filepath.Join(filepath.Dir(data), "pw-"+filepath.Base(data))
	if err := writeFor(acc, pw, password); err != nil {
		return err
	}
	defer os.Remove(pw)
	all := append([]string{"-D", data, "-U", superuser, "-A", "scram-sha-256", "--pwfile", pw,
		"-E", "UTF8", "--locale=C", "--no-sync"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), all...)
	cmd.Dir = filepath.Dir(data)
	cmd.Env = toolEnv(nil)
	cmd.SysProcAttr = acc.attr()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("flotest: initdb: %w\n%s", err, out)
	}
	return writeFor(acc, filepath.Join(data, passwordFile), password)
}

// writeFor writes a file that only the account reads.
func writeFor(acc account, path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("flotest: %w", err)
	}
	if err := acc.own(path); err != nil {
		return fmt.Errorf("flotest: %w", err)
	}
	return nil
}

// toolEnv is this process's environment without PostgreSQL's own variables (PGDATA,
// PGHOST and the like would lead the tools elsewhere), plus more.
func toolEnv(more []string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(append(env, "LC_ALL=C"), more...)
}

// templates keeps, for the life of the process, one initialised folder for each way of
// initdb: a copy takes a tenth of initdb's time. It is process-wide on purpose, as the
// tests of a binary have nothing else in common.
var templates = templateCache{made: map[string]*template{}}

type templateCache struct {
	mu   sync.Mutex
	made map[string]*template
}

type template struct {
	dir   string
	guard *guard
}

// copyTo makes data a fresh cluster.
func (c *templateCache) copyTo(ctx context.Context, acc account, bin, data string, args []string) error {
	tpl, err := c.get(ctx, acc, bin, args)
	if err != nil {
		return err
	}
	return copyFolder(acc, tpl.dir, data)
}

func (c *templateCache) get(ctx context.Context, acc account, bin string, args []string) (*template, error) {
	key := bin + "\x00" + strings.Join(args, "\x00")
	c.mu.Lock()
	defer c.mu.Unlock()
	if tpl := c.made[key]; tpl != nil {
		return tpl, nil
	}
	base, err := acc.tempFolder("flo-pgt-")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(base, "data")
	g, err := startGuard(dir, base)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(base))
	}
	if err := initCluster(ctx, acc, bin, dir, args); err != nil {
		return nil, errors.Join(err, g.release())
	}
	tpl := &template{dir, g}
	c.made[key] = tpl
	return tpl, nil
}

// drop removes all templates.
func (c *templateCache) drop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for key, tpl := range c.made {
		errs = append(errs, tpl.guard.release())
		delete(c.made, key)
	}
	return errors.Join(errs...)
}

// copyFolder copies a stopped cluster, owned by the account. The kernel shares blocks
// where the file system can (io.Copy between files uses copy_file_range on Linux).
func copyFolder(acc account, from, to string) error {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			err = os.MkdirAll(dst, 0o700)
		case d.Type().IsRegular():
			err = copyFile(path, dst)
		default:
			return fmt.Errorf("%s: neither file nor folder", path)
		}
		if err != nil {
			return err
		}
		return acc.own(dst)
	})
	if err != nil {
		return fmt.Errorf("flotest: copy cluster: %w", err)
	}
	return nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// ownAll gives a whole folder to the account.
func ownAll(acc account, dir string) error {
	if !acc.drop {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return acc.own(path)
	})
}
