package sys

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The file of a listening unix socket, which its owner removes and nobody else's.

// A FileID tells a file from another one that has its path.
type FileID struct{ dev, ino uint64 }

// FileAt returns the FileID of the file at path.
func FileAt(path string) (id FileID, ok bool) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return FileID{}, false
	}
	return FileID{uint64(st.Dev), uint64(st.Ino)}, true
}

// RemoveFile removes the file at path if it is id. Between a look and an unlink another process may
// put its own file there. So RemoveFile moves the file aside, looks at it again, and moves it back
// if it is not id.
func RemoveFile(path string, id FileID) {
	if at, ok := FileAt(path); !ok || at != id {
		return
	}
	aside := filepath.Join(filepath.Dir(path), fmt.Sprintf(".tcpio-%d-%x-%x", os.Getpid(), id.dev, id.ino))
	if unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, aside, unix.RENAME_NOREPLACE) != nil {
		_ = unix.Unlink(path) // the file system cannot rename so
		return
	}
	if at, ok := FileAt(aside); ok && at != id &&
		unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE) == nil {
		return
	}
	_ = unix.Unlink(aside)
}
