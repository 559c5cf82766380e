package tcpio

// An Actor receives the events of a connection, one at a time and in order, never two together, on
// a goroutine of the loop: no goroutine is kept for it.
//
// Receive may block, for a database say: when it holds the loop for more than a millisecond or so,
// another goroutine carries on with the loop's other connections; see [ListenerOptions.MaxBlocked].
// A returned error closes the connection with that error, behind what is queued; io.EOF, as TryRead
// returns it, is an orderly close, and Err is nil. A panic aborts the connection with a
// *[PanicError]; nothing else is touched. In all these cases Closed still follows. [Stats] counts
// errors and panics; tcpio logs a panic, and an error at the level Debug, see
// [ListenerOptions.Logger]. That is all that comes of an error or a panic of Receive at Closed.
type Actor interface{ Receive(ev Event) error }

// ActorFunc is a function as an Actor.
type ActorFunc func(ev Event) error

// Receive calls f.
func (f ActorFunc) Receive(ev Event) error { return f(ev) }
