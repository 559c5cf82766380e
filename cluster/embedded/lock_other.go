//go:build !linux

package embedded

import (
	"errors"
	"io/fs"
	"os"
)

var errLocked = errors.New("locked by another process")

func lockFile(*os.File) error { return errors.ErrUnsupported }

func checkPrivate(fs.FileInfo) error { return errors.ErrUnsupported }
