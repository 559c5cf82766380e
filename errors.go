package tcpio

import "errors"

// ErrWouldBlock says that a Try method could do nothing without blocking: TryRead found nothing to read (a Readable
// follows), TryWrite found the queue full (a Writable follows). It is returned as it is, never wrapped.
var ErrWouldBlock = errors.New("tcpio: operation would block")

// ErrMailboxFull says that a post was refused because MailboxSize values are waiting already.
var ErrMailboxFull = errors.New("tcpio: mailbox full")

// ErrCloseTimeout is a connection's Err when CloseTimeout ended before its output was flushed. It is a *[LimitError] and
// matches os.ErrDeadlineExceeded.
var ErrCloseTimeout error = &LimitError{Limit: "close"}
