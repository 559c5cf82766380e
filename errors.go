package tcpio

import (
	"errors"
	"os"
)

// ErrWouldBlock says that a Try method could do nothing without blocking: TryRead found nothing to read (a Readable
// follows), TryWrite found the queue full (a Writable follows). It is returned as it is, never wrapped.
var ErrWouldBlock = errors.New("tcpio: operation would block")

// ErrMailboxFull says that a post was refused because MailboxSize values are waiting already.
var ErrMailboxFull = errors.New("tcpio: mailbox full")

// ErrCloseTimeout is a connection's Err when CloseTimeout ended before its output was flushed. It matches
// os.ErrDeadlineExceeded.
var ErrCloseTimeout error = &limitError{"tcpio: close time limit reached with output left"}

// limitError is a time limit that ended a connection.
type limitError struct{ text string }

func (e *limitError) Error() string        { return e.text }
func (e *limitError) Timeout() bool        { return true }
func (e *limitError) Temporary() bool      { return false }
func (e *limitError) Is(target error) bool { return target == os.ErrDeadlineExceeded }
