package tcpio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// ErrWouldBlock says that a Try method could do nothing without blocking: TryRead found nothing to
// read (a Readable follows), TryWrite found the queue full (a Writable follows). It is returned as
// it is, never wrapped.
var ErrWouldBlock = errors.New("tcpio: operation would block")

// ErrShortPreface is what [ListenerOptions].Preface returns when it needs more bytes than it was
// shown.
var ErrShortPreface = errors.New("tcpio: more bytes are needed")

// ErrMailboxFull says that a post was refused because MailboxSize values are waiting already.
var ErrMailboxFull = errors.New("tcpio: mailbox full")

// ErrCloseTimeout is a connection's Err when CloseTimeout ended before its output was flushed. It
// is a *[TimeoutError] and matches os.ErrDeadlineExceeded.
var ErrCloseTimeout error = &TimeoutError{Kind: TimeoutClose}

// ErrDrainTimeout is the Err of a connection that Shutdown has closed, since the time behind
// Draining was over, or cut off, since Shutdown's ctx ended, while the peer had not ended its
// stream: what was read is not known to be all, so whoever passes it on should abort rather than
// close. It is a *[TimeoutError] and matches os.ErrDeadlineExceeded. A connection whose handler has
// called Close, or whose actor has returned from Draining where that closes it, has ended in order.
var ErrDrainTimeout error = &TimeoutError{Kind: TimeoutDrain}

// A TimeoutKind says which time limit ended a connection.
type TimeoutKind int

const (
	TimeoutIdle       TimeoutKind = iota + 1 // IdleTimeout, or SetIdleTimeout
	TimeoutReadStall                         // ReadStallTimeout
	TimeoutInput                             // InputTimeout, or SetInputTimeout
	TimeoutFrame                             // FrameTimeout
	TimeoutWriteStall                        // WriteStallTimeout
	TimeoutPreface                           // PrefaceTimeout
	TimeoutHandshake                         // HandshakeTimeout
	TimeoutClose                             // CloseTimeout, with output left: ErrCloseTimeout
	TimeoutDrain                             // Shutdown, before the peer has ended: ErrDrainTimeout
	timeoutEOF                               // EOFTimeout, which ends in order and is no error
	timeoutKinds
)

var timeoutNames = [timeoutKinds]string{
	"", "idle", "read", "input", "frame", "write", "preface", "handshake", "close", "drain", "eof",
}

// String returns the limit's name: "idle", "read", "input", "frame", "write", "preface",
// "handshake", "close" or "drain"; TimeoutKind(n) for a number that has none.
func (k TimeoutKind) String() string {
	if k <= 0 || k >= timeoutKinds {
		return "TimeoutKind(" + strconv.Itoa(int(k)) + ")"
	}
	return timeoutNames[k]
}

// TimeoutError is the Err of a connection that a time limit ended. It matches
// os.ErrDeadlineExceeded.
type TimeoutError struct {
	Kind  TimeoutKind
	After time.Duration // the limit; 0 for TimeoutClose and TimeoutDrain
}

func (e *TimeoutError) Error() string {
	switch {
	case e.Kind == TimeoutDrain:
		return "tcpio: Shutdown ended the connection before its peer had"
	case e.After == 0:
		return "tcpio: " + e.Kind.String() + " time limit reached with output left"
	}
	return fmt.Sprintf("tcpio: %s time limit of %v reached", e.Kind, e.After)
}

// Timeout reports true, as a net.Error.
func (e *TimeoutError) Timeout() bool { return true }

// Temporary reports false, as a net.Error.
func (e *TimeoutError) Temporary() bool { return false }

// Is reports whether target is os.ErrDeadlineExceeded.
func (e *TimeoutError) Is(target error) bool { return target == os.ErrDeadlineExceeded }

// A PanicError is code of yours that panicked, or called runtime.Goexit; Value then says so. It is
// the Err of a connection whose actor or OnConnEvent did so. Around it is a *net.OpError where a
// function of a TLS config did so in a handshake, or a function of a Dialer in a dial.
type PanicError struct {
	Value any    // what panic was called with
	Stack []byte // of the goroutine at the panic, as runtime/debug.Stack has it
}

func (e *PanicError) Error() string { return fmt.Sprintf("tcpio: panic: %v", e.Value) }

// Unwrap returns the panic's value if it is an error, such as runtime.Error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// A goexit is the value of a PanicError when user code called runtime.Goexit.
type goexit struct{ in string }

func (e goexit) Error() string { return "runtime.Goexit called in " + e.in }

// errGoexit is the value of a PanicError when an actor called runtime.Goexit.
var errGoexit error = goexit{"Receive"}

// ErrSlow is the Err of a connection that a Group closed because it did not keep up.
var ErrSlow = errors.New("tcpio: connection did not keep up with its group")

// ErrHijacked is the Err of a connection that Hijack gave away.
var ErrHijacked = errors.New("tcpio: connection hijacked")

// ErrRelayed says that a [Relay] reads and writes the connection, and nobody else may. Operations
// return it in a *net.OpError.
var ErrRelayed = errors.New("tcpio: the connection is in a relay")

// ErrRelayEnded is the Err of a connection that its [Relay] reset, since the other connection had
// failed or was closed. [Relay.End] has the cause.
var ErrRelayEnded = errors.New("tcpio: the other connection of the relay ended")

// A dialTimeout is the error of a dial whose time is over. Package net has two, of which some code
// looks for the one and some for the other.
type dialTimeout struct{}

var errDialTimeout error = dialTimeout{}

func (dialTimeout) Error() string   { return "i/o timeout" }
func (dialTimeout) Timeout() bool   { return true }
func (dialTimeout) Temporary() bool { return true }

func (dialTimeout) Is(target error) bool {
	return target == os.ErrDeadlineExceeded || target == context.DeadlineExceeded
}

// An endedError is net.ErrClosed with its cause.
type endedError struct{ cause syscall.Errno }

func (e *endedError) Error() string { return net.ErrClosed.Error() + ": " + e.cause.Error() }

func (e *endedError) Unwrap() []error { return []error{net.ErrClosed, e.cause} }
