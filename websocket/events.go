package websocket

import (
	"fmt"
	"net/http"

	"github.com/rabbit-backend/tcpio"
)

// Event is one of [Opened], [Text], [Binary], [Piece], [Writable], [Message], [Draining], [Closed]
// and [Failed]. Other packages cannot add types. A type switch should ignore types that it does
// not know: later versions may have more.
//
// The events of one connection come in this order: Opened, then any of the others, then Closed.
type Event interface{ event() }

// Opened says that the opening handshake is done. It is the first event of a connection and comes
// exactly once. A peer whose handshake fails has no events.
type Opened struct {
	Conn *Conn
	// Request is the peer's request, with its path, query and header. The connection does not
	// keep it: copy what is needed later. It is nil for a dialed connection.
	Request *http.Request
}

// Text is a whole text message, which is valid UTF-8. Data is valid until the next event of the
// iteration, or until Receive returns, and may be changed in place; on a channel of [Conn.Events]
// it is the receiver's to keep.
type Text struct {
	Conn *Conn
	Data []byte
}

// Binary is a whole binary message. Data is as for [Text].
type Binary struct {
	Conn *Conn
	Data []byte
}

// Piece is a part of a message that is larger than [Options].PieceSize: the pieces of a message
// come in order, at least two, without a piece or a message of the same connection in between.
// Data is as for [Text]. A piece of a text may end inside a character; the text as a whole is
// valid UTF-8 up to there.
type Piece struct {
	Conn *Conn
	Data []byte
	Text bool // of a text message
	Last bool // the message ends with it
}

// Writable follows a [tcpio.ErrWouldBlock] of a Try method, or messages that a Group left out:
// there is room again.
type Writable struct {
	Conn *Conn
	// Skipped is how many messages Groups have left out for this connection since the last
	// Writable, because it did not keep up.
	Skipped int
}

// Message carries a value that [Conn.Post], [Conn.Ask] or [Conn.After] sent to the connection.
type Message struct {
	Conn  *Conn
	Value any
	core  tcpio.Message
}

// Reply answers the Ask that sent m; see [tcpio.Message.Reply].
func (m Message) Reply(v any) bool { return m.core.Reply(v) }

// Draining says that [tcpio.Listener.Shutdown] has begun. Once it is handled, or at the end of the
// DrainTimeout that Listen was given, the connection is closed with [GoingAway]. The receiver of a
// channel of [Conn.Events] has 250 ms if there is no DrainTimeout.
type Draining struct{ Conn *Conn }

// Closed says that the connection is over. It is the last event of a connection and comes exactly
// once, if Opened came. On a channel of [Conn.Events] it comes before the peer's Close frame is
// answered, so that the receiver has sent all it wants to.
type Closed struct {
	Conn *Conn
	// Code is the code of the Close frame that began the end, [NoStatus] if it had none, and
	// [Abnormal] if the connection ended without one; [Conn.Err] then says why.
	Code   Code
	Reason string // of the Close frame
	By     Side   // who began the end
}

// Failed reports an error of the listener; see [tcpio.Failed].
type Failed struct{ Err error }

func (Opened) event()   {}
func (Text) event()     {}
func (Binary) event()   {}
func (Piece) event()    {}
func (Writable) event() {}
func (Message) event()  {}
func (Draining) event() {}
func (Closed) event()   {}
func (Failed) event()   {}

// ConnOf returns the connection that ev is about. It is nil for a nil ev and for [Failed].
func ConnOf(ev Event) *Conn {
	switch ev := ev.(type) {
	case Opened:
		return ev.Conn
	case Text:
		return ev.Conn
	case Binary:
		return ev.Conn
	case Piece:
		return ev.Conn
	case Writable:
		return ev.Conn
	case Message:
		return ev.Conn
	case Draining:
		return ev.Conn
	case Closed:
		return ev.Conn
	}
	return nil
}

// String describes e for a log, as every event's String does. Of what the peer sent it shows sizes
// only.
func (e Opened) String() string { return "Opened(" + e.Conn.String() + ")" }

// String describes e for a log, with the size of its Data.
func (e Text) String() string { return fmt.Sprintf("Text(%s, %d bytes)", e.Conn, len(e.Data)) }

// String describes e for a log, with the size of its Data.
func (e Binary) String() string { return fmt.Sprintf("Binary(%s, %d bytes)", e.Conn, len(e.Data)) }

// String describes e for a log, with the size of its Data.
func (e Piece) String() string { return fmt.Sprintf("Piece(%s, %d bytes)", e.Conn, len(e.Data)) }

// String describes e for a log.
func (e Writable) String() string { return "Writable(" + e.Conn.String() + ")" }

// String describes m for a log, with the type of its Value.
func (m Message) String() string { return fmt.Sprintf("Message(%s, %T)", m.Conn, m.Value) }

// String describes e for a log.
func (e Draining) String() string { return "Draining(" + e.Conn.String() + ")" }

// String describes e for a log, with its code and side.
func (e Closed) String() string {
	return fmt.Sprintf("Closed(%s, %v, %v)", e.Conn, e.Code, e.By)
}

// String describes e for a log, with its Err.
func (e Failed) String() string { return fmt.Sprintf("Failed(%v)", e.Err) }

// Side says who began the end of a connection.
type Side uint8

const (
	Neither Side = iota // no Close frame: the connection was cut, or closed without one
	Local               // this program
	Peer                // the other one
)

// String returns the side's name, or Side(n) for a number that has none.
func (s Side) String() string {
	switch s {
	case Neither:
		return "Neither"
	case Local:
		return "Local"
	case Peer:
		return "Peer"
	}
	return fmt.Sprintf("Side(%d)", uint8(s))
}

// A Code is the status of a Close frame (RFC 6455, 7.4). Codes from 3000 to 4999 are for programs.
type Code uint16

const (
	Normal          Code = 1000
	GoingAway       Code = 1001
	ProtocolError   Code = 1002
	UnsupportedData Code = 1003
	NoStatus        Code = 1005 // the Close frame had no code; never sent
	Abnormal        Code = 1006 // there was no Close frame; never sent
	InvalidPayload  Code = 1007 // text that is no UTF-8, or data that cannot be decompressed
	PolicyViolation Code = 1008
	MessageTooBig   Code = 1009
	InternalError   Code = 1011
	ServiceRestart  Code = 1012
	TryAgainLater   Code = 1013
)

var codeNames = map[Code]string{
	Normal: "normal", GoingAway: "going away", ProtocolError: "protocol error",
	UnsupportedData: "unsupported data", NoStatus: "no status", Abnormal: "abnormal",
	InvalidPayload: "invalid payload", PolicyViolation: "policy violation",
	MessageTooBig: "message too big", InternalError: "internal error",
	ServiceRestart: "service restart", TryAgainLater: "try again later",
}

// String returns the code with its name, if it has one: "1001 going away".
func (c Code) String() string {
	if name, ok := codeNames[c]; ok {
		return fmt.Sprintf("%d %s", uint16(c), name)
	}
	return fmt.Sprintf("%d", uint16(c))
}

// sendable reports whether a Close frame may have the code (RFC 6455, 7.4, and IANA's registry).
func (c Code) sendable() bool {
	return c >= 1000 && c <= 1014 && (c < 1004 || c > 1006) || c >= 3000 && c <= 4999
}
