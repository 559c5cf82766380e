package tcpio

import "fmt"

// Event is what a connection or its listener has to say: one of [Opened], [Readable], [Writable], [Message], [Draining],
// [Closed] and [Failed]. The set is sealed; a type switch that ignores what it does not know stays right.
//
// For one connection and one route the order is: Opened, then any of Readable, Writable, Message and Draining, then Closed.
// Between connections there is no order. Every event but Message and Failed holds one pointer, so that sending it through
// a channel allocates nothing.
type Event interface{ event() }

// Opened says that a connection is established. It is the first event of a connection and comes exactly once.
type Opened struct{ Conn *Conn }

// Readable says that bytes, the peer's end of stream or an error can be read. At most one is outstanding for a
// connection: the next one follows a read. After [Conn.TryRead] filled its buffer another Readable follows by itself;
// after a shorter read, or ErrWouldBlock, one follows when the peer sent more. Who does not read gets no further
// Readable, and the peer is held back by TCP flow control. It is a hint: a read may still return ErrWouldBlock.
type Readable struct{ Conn *Conn }

// Writable says that output is accepted again after [Conn.TryWrite] returned [ErrWouldBlock]: the queue has fallen to
// half of [ListenerOptions.WriteBuffer], or the connection can no longer be written to, which the next write reports.
//
// A write larger than what is free may be refused again, and then another Writable follows.
type Writable struct{ Conn *Conn }

// Message carries a value that somebody posted to the connection. Values of one poster come in the order posted.
type Message struct {
	Conn  *Conn
	Value any
	ask   *ask // whoever waits for Reply
}

// Draining says that [Listener.Shutdown] has begun: this is the time to finish what is under way, say goodbye and call
// Close. It comes at most once, and not for a connection that is closing already. Reading, writing and posting work as
// before until somebody closes.
//
// Without [ListenerOptions.DrainTimeout] the library closes the connection by itself: behind the actor's Receive that was
// told, elsewhere 250 ms after Shutdown began.
type Draining struct{ Conn *Conn }

// Closed says that the connection is over and its descriptor gone. It is the last event of a connection and comes exactly
// once. [Conn.Err] says why: nil for an orderly end.
type Closed struct{ Conn *Conn }

// Failed says that the listener met trouble that concerns no connection, such as descriptors exhausted at accept. The
// listener goes on by itself; Failed is never fatal. While a trouble lasts, one comes per second at most.
type Failed struct{ Err error }

func (Opened) event()   {}
func (Readable) event() {}
func (Writable) event() {}
func (Message) event()  {}
func (Draining) event() {}
func (Closed) event()   {}
func (Failed) event()   {}

// ConnOf returns the connection that ev is about. It is nil for a nil ev and for [Failed], which is about none.
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
	case Closed:
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

// String describes m for a log, by the type of its Value: "Message(conn 12, 127.0.0.1:5555, time.Time)". It neither shows the
// Value nor calls its methods.
func (m Message) String() string { return fmt.Sprintf("Message(%s, %T)", m.Conn.String(), m.Value) }

// String describes e for a log: "Draining(conn 12, 127.0.0.1:5555)".
func (e Draining) String() string { return describe("Draining", e.Conn) }

// String describes e for a log: "Closed(conn 12, 127.0.0.1:5555)". [Conn.Err] has the cause.
func (e Closed) String() string { return describe("Closed", e.Conn) }

// String describes e for a log, with its Err: "Failed(accept: too many open files)".
func (e Failed) String() string { return fmt.Sprintf("Failed(%v)", e.Err) } // fmt catches a panic in a method of Err

func describe(event string, c *Conn) string { return event + "(" + c.String() + ")" }
