package embedded

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A directory is where processes find each other. It holds
//
//	lock     locked for a moment by who changes the directory
//	secret   in hex, for ever
//	kind     "mesh" or "store": which of the two uses it
//	mesh/ID  the route address of a process, locked as long as it lives
//	store/   lock, held by the process that runs the server; addr, where it listens; jetstream/
//
// Whether a process lives is asked of the kernel: it drops the locks of one that has ended, however
// it ended. So neither a file that was left behind nor a process id that came back can mislead.
// A file comes into its place whole, by a rename, under lock; what a process that was killed left
// of it has a name that begins with tmp, and is removed by the next that has the lock.
type directory struct{ path string }

const tmp = "tmp-"

// openDirectory makes the directory, or checks that nobody else may look into it.
func openDirectory(path string) (*directory, error) {
	if path == "" {
		return nil, errors.New("embedded: Options.Dir is empty")
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("embedded: Options.Dir: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("embedded: Options.Dir: %w", err)
	}
	if err := checkPrivate(info); err != nil {
		return nil, fmt.Errorf("embedded: Options.Dir %s: %w", path, err)
	}
	return &directory{path: path}, nil
}

func (d *directory) file(name string) string { return filepath.Join(d.path, name) }

// lock waits until this process alone may change the directory, which others do for a moment each.
func (d *directory) lock(ctx context.Context) (unlock func(), err error) {
	for {
		f, err := tryLock(d.file("lock"))
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, errLocked) {
			return nil, fmt.Errorf("embedded: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("embedded: %s is locked by another process: %w", d.file("lock"), ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// prepare removes what was left half written, and returns the secret, which it makes if there is
// none. The directory is locked.
func (d *directory) prepare(kind string) (*identity, error) {
	for _, sub := range []string{".", kind} {
		if err := os.Mkdir(d.file(sub), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("embedded: %w", err)
		}
		left, err := filepath.Glob(d.file(filepath.Join(sub, tmp+"*")))
		if err != nil {
			return nil, fmt.Errorf("embedded: %w", err)
		}
		for _, name := range left {
			if err := os.Remove(name); err != nil {
				return nil, fmt.Errorf("embedded: %w", err)
			}
		}
	}
	was, err := d.once("kind", func() string { return kind })
	if err != nil {
		return nil, err
	}
	if was != kind {
		return nil, fmt.Errorf("embedded: Options.Store: %s is used by processes that have it otherwise (%s): "+
			"take another directory", d.path, was)
	}
	text, err := d.once("secret", func() string {
		secret := make([]byte, secretSize)
		rand.Read(secret) // never fails
		return hex.EncodeToString(secret)
	})
	if err != nil {
		return nil, err
	}
	secret, err := hex.DecodeString(text)
	if err != nil || len(secret) != secretSize {
		return nil, fmt.Errorf("embedded: %s is damaged: stop all processes and remove it", d.file("secret"))
	}
	return newIdentity(secret)
}

// once returns what the file holds, and writes it if there is none.
func (d *directory) once(name string, content func() string) (string, error) {
	p, err := os.ReadFile(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		p = []byte(content())
		var f *os.File
		if f, err = d.put(name, string(p)); err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
	}
	if err != nil {
		return "", fmt.Errorf("embedded: %w", err)
	}
	return string(p), nil
}

// put writes the file in one step, and returns it locked: the lock is that of the caller's process
// until it closes the file, or ends. The directory is locked.
func (d *directory) put(name, content string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(d.file(name)), tmp+"*") // mode 0600
	if err != nil {
		return nil, err
	}
	err = lockFile(f)
	if err == nil {
		_, err = f.WriteString(content)
	}
	if err == nil {
		err = os.Rename(f.Name(), d.file(name))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}

// A member is a process of a mesh that lives.
type member struct{ id, addr string }

// members returns the processes of the mesh that live, and removes the files of those that do not.
// The directory is locked.
func (d *directory) members() ([]member, error) {
	entries, err := os.ReadDir(d.file("mesh"))
	if err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	var all []member
	for _, e := range entries {
		name := filepath.Join("mesh", e.Name())
		switch alive, err := d.alive(name); {
		case err != nil:
			return nil, err
		case !alive:
			if err := os.Remove(d.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("embedded: %w", err)
			}
			continue
		}
		p, err := os.ReadFile(d.file(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just ended, and removed its file
		}
		if err != nil {
			return nil, fmt.Errorf("embedded: %w", err)
		}
		all = append(all, member{e.Name(), strings.TrimSpace(string(p))})
	}
	return all, nil
}

// alive reports whether a process has the file locked.
func (d *directory) alive(name string) (bool, error) {
	f, err := os.OpenFile(d.file(name), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("embedded: %w", err)
	}
	defer f.Close()
	err = lockFile(f)
	if errors.Is(err, errLocked) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("embedded: %w", err)
	}
	return false, nil
}

// tryLock opens the file, which it makes if there is none, and locks it, or returns errLocked.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
