package tcpio

import (
	"fmt"
	"sync/atomic"
)

// Event is one of [Opened], [Readable], [Writable], [Message], [Draining], [RelayEnded], [Closed],
// [Dialed] and [Failed]. Other packages cannot add types. A type switch should ignore types that it
// does not know: later versions may have more.
//
// The events of one connection on one route come in this order: Opened, then any of Readable,
// Writable, Message, Dialed, Draining and RelayEnded, then Closed. Events of different connections
// have no order. Every event but Message, Dialed and Failed is one pointer, so that sending it
// through a channel allocates nothing.
//
// Dialed answers a request. It comes before the Opened of the new connection, or, if the request
// came from a connection (DialRequest.To), among the Messages of that one.
type Event interface{ event() }

// Opened says that a connection is established. It is the first event of a connection and comes
// exactly once.
type Opened struct{ Conn *Conn }

// Readable says that bytes, the peer's end of stream or an error can be read. At most one is
// outstanding for a connection: the next one follows a read. After [Conn.TryRead] filled its buffer
// another Readable follows by itself; after a shorter read, or ErrWouldBlock, one follows when the
// peer has sent more. Without a read no further Readable comes, and TCP flow control holds the peer
// back. Readable is a hint: a read may still return ErrWouldBlock.
type Readable struct{ Conn *Conn }

// Writable follows an [ErrWouldBlock] of [Conn.TryWrite]: the queue has fallen to half of
// [ListenerOptions.WriteBuffer], or writing has failed, which the next write reports. A write that
// is larger than the free room is refused again, and another Writable follows.
type Writable struct{ Conn *Conn }

// Message carries a value that [Conn.Post], [Conn.Ask] or [Conn.After] sent to the connection. The
// values that one goroutine posts come in the order posted.
type Message struct {
	Conn  *Conn
	Value any
	ask   *ask // the Ask that waits for Reply; nil without one
}

// Draining says that [Listener.Shutdown] has begun: finish what is under way, send the last bytes,
// and call Close. It comes at most once, and not for a connection that is closing already. Reading,
// writing and posting work as before until the connection is closed.
//
// Without [ListenerOptions.DrainTimeout] tcpio closes the connection itself: an actor's when the
// Receive of Draining returns, any other 250 ms after Shutdown began. Then Err is [ErrDrainTimeout]
// if the peer has not ended, but for an actor's that has returned from Draining.
type Draining struct{ Conn *Conn }

// RelayEnded says that a [Relay] has ended, and both of its connections with it, which may still be
// closing. It is sent once, to the route of the connection whose method Relay was called, before
// its Closed. [Conn.Relayed] returns the relay: [Relay.End] says why, [Relay.Passed] has the bytes.
type RelayEnded struct{ Conn *Conn }

// Closed says that the connection is over and its descriptor gone. It is the last event of a
// connection and comes exactly once. [Conn.Err] says why: nil for an orderly end.
type Closed struct{ Conn *Conn }

// Dialed answers a [Listener.DialAsync]: the connection is established, with TLS its handshake too,
// or the dial has failed. It comes exactly once for a request, unless stop was called in time or
// To has closed.
type Dialed struct {
	Conn  *Conn // the new connection; nil if the dial failed
	Err   error // why it failed, a *net.OpError; nil if it did not
	Value any   // the request's
	To    *Conn // the request's: the connection that asked, among whose events this one is
}

// Failed reports an error that belongs to no connection that you know. Err is a *net.OpError. Its
// Op is "accept" for a failure of the listener itself, such as no free descriptor, and "preface" or
// "handshake" for a peer that Preface has refused or whose TLS handshake has failed. The listener
// goes on by itself: Failed is never fatal. Of the listener's own at most one comes a second, and
// of peers' at most one: refused peers do not hide a failure of the listener.
type Failed struct{ Err error }

func (Opened) event()     {}
func (Readable) event()   {}
func (Writable) event()   {}
func (Message) event()    {}
func (Draining) event()   {}
func (RelayEnded) event() {}
func (Closed) event()     {}
func (Dialed) event()     {}
func (Failed) event()     {}

// ConnOf returns the connection among whose events ev is. Of a [Dialed] that is To, or, if nobody
// asked, the new connection. It is nil for a nil ev, for a Dialed that failed and that nobody asked
// for, and for [Failed], which is about none.
func ConnOf(ev Event) *Conn {
	switch ev := ev.(type) {
	case Opened:
		return ev.Conn
	case Readable:
		return ev.Conn
	case Writable:
		return ev.Conn
	case Message:
		return ev.Conn
	case Draining:
		return ev.Conn
	case RelayEnded:
		return ev.Conn
	case Closed:
		return ev.Conn
	case Dialed:
		if ev.To != nil {
			return ev.To
		}
		return ev.Conn
	}
	return nil
}

// String describes e for a log, as every event's String does: "Opened(conn 12, 127.0.0.1:5555)".
func (e Opened) String() string { return describe("Opened", e.Conn) }

// String describes e for a log: "Readable(conn 12, 127.0.0.1:5555)".
func (e Readable) String() string { return describe("Readable", e.Conn) }

// String describes e for a log: "Writable(conn 12, 127.0.0.1:5555)".
func (e Writable) String() string { return describe("Writable", e.Conn) }

// String describes m for a log: "Message(conn 12, 127.0.0.1:5555, time.Time)". Of its Value it
// shows the type, and it calls none of the Value's methods.
func (m Message) String() string { return fmt.Sprintf("Message(%s, %T)", m.Conn.String(), m.Value) }

// String describes e for a log: "Draining(conn 12, 127.0.0.1:5555)".
func (e Draining) String() string { return describe("Draining", e.Conn) }

// String describes e for a log: "RelayEnded(conn 12, 127.0.0.1:5555)".
func (e RelayEnded) String() string { return describe("RelayEnded", e.Conn) }

// String describes e for a log: "Closed(conn 12, 127.0.0.1:5555)". [Conn.Err] has the cause.
func (e Closed) String() string { return describe("Closed", e.Conn) }

// String describes e for a log: "Dialed(conn 12, 127.0.0.1:5555)", or "Dialed(dial tcp
// 127.0.0.1:5555: connect: connection refused)".
func (e Dialed) String() string {
	if e.Conn != nil {
		return describe("Dialed", e.Conn)
	}
	return fmt.Sprintf("Dialed(%v)", e.Err)
}

// String describes e for a log, with its Err: "Failed(accept: too many open files)".
func (e Failed) String() string {
	return fmt.Sprintf("Failed(%v)", e.Err) // fmt catches a panic in a method of Err
}

func describe(event string, c *Conn) string { return event + "(" + c.String() + ")" }

// An ask is a value of Conn.Ask, whose caller waits for the answer.
type ask struct {
	over  atomic.Bool // answered, or given up
	reply chan any    // of one; Reply fills it, if it was Reply that set over
}

// Reply answers the Ask that sent m, from any goroutine, without blocking. It reports whether the
// answer was taken: not for a second one, not when Ask has given up, and not for a Message that
// comes from Post or After.
func (m Message) Reply(v any) bool {
	if m.ask == nil || !m.ask.over.CompareAndSwap(false, true) {
		return false
	}
	m.ask.reply <- v
	return true
}
