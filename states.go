package tcpio

// The states of a connection's parts. The life of the whole is its phase; see conn.go. What can be
// in one state at a time is a type of its own here, and what is only true or false is a mark in a
// set.

// A set has marks of one kind, a bit each.
type set[M ~uint8] struct{ marks M }

func (s set[M]) has(any M) bool { return s.marks&any != 0 }
func (s set[M]) empty() bool    { return s.marks == 0 }
func (s *set[M]) add(m M)       { s.marks |= m }
func (s *set[M]) drop(m M)      { s.marks &^= m }

// reach moves a stage, which only ever goes forward, to to if it is not there yet.
func reach[S ~uint8](stage *S, to S) { *stage = max(*stage, to) }

// An origin is where a connection comes from.
type origin uint8

const (
	accepted origin = iota
	refused         // accepted and only kept until its peer has the reply; it has no ID, since nobody sees it
	adopted
	dialled // plain
)

// A peerEnd is how far the peer's end of stream has come.
type peerEnd uint8

const (
	peerOpen  peerEnd = iota
	peerRead          // it was read
	peerTold          // io.EOF was returned to the user
	peerTimed         // EOFTimeout runs: the connection is in its loop's eofs, not in limits
)

// A sendEnd is how far our own end has come.
type sendEnd uint8

const (
	sendOpen sendEnd = iota
	sendShut         // CloseWrite was called; the FIN is behind what is queued
	sendFin          // our FIN is out
)

// writing is who puts bytes into the output: between those of one write no others come.
type writing uint8

const (
	writeFree writing = iota
	writeHeld         // a blocking write, or a copy
	writeBulk         // a large TryWrite has given up mu for a moment: what it has left goes out before the end does
)

// A claim says which events a connection has.
type claim uint8

const (
	claimed   claim = iota // all
	unclaimed              // Opened alone: NetListener, Dial or nobody has it as a net.Conn, until Events or Attach
	unheard                // likewise, and Opened waits for the peer's first bytes
)

// A routeMark is what a connection has to remember of its route.
type routeMark uint8

const (
	routeOpened  routeMark = 1 << iota // Opened was emitted
	routeQueued                        // in its stream's queue
	routeRunning                       // a goroutine is inside its actor
)

// An event is one kind of event, of those that are no message.
type event uint8

const (
	pendOpened event = 1 << iota
	pendReadable
	pendWritable
	pendDraining
	pendClosed
)

// A sockMark is what a connection has to remember of its socket.
type sockMark uint8

const (
	sockNew     sockMark = 1 << iota // register is at work: the descriptor stays
	sockUnsure                       // a short read proves nothing: end, error or urgent data was signalled, or it is not TCP
	sockHeard                        // a byte has arrived
	sockFinSeen                      // the peer's FIN was read; with TLS that is not the peer's end of stream
	sockTimed                        // activity is noted: the connection has, or had, a time limit
	sockReset                        // to be closed with a reset
)

// A userMark is what a connection has to remember of its user.
type userMark uint8

const (
	userReadable  userMark = 1 << iota // a Readable is outstanding: emitted, and nobody has read since
	userWantsRoom                      // TryWrite refused: a Writable is owed
	userStarved                        // a write was refused for MaxBuffered
)

// A want is what a connection waits for in its loop's queue. It is in the queue while it wants
// anything.
type want uint8

const (
	wantTurn  want = 1 << iota // of its actor
	wantFlush                  // the rest of the output, for which no edge will come
	wantDrain                  // the rest of the input that a closing connection throws away
)

// A todo is what has changed, or is to be done. Whoever has mu notes it; settleLocked does the
// first four before mu is free, and unlock the others afterwards.
type todo uint8

const (
	todoOutput  todo = 1 << iota // output has gone out, or may do so: there may be room, or it has come to its end
	todoSendErr                  // writing has failed
	todoReadErr                  // a read has returned why reading failed
	todoIdle                     // a turn is over, or the user was told of the peer's end: is the connection to end now?

	todoDrop  // let go of the timers and groups that are left of very many
	todoClose // close the descriptor, when its last user has gone
	todoHelp  // poll in the loop's place: every Readable that was delivered is answered

	todoSettle = todoOutput | todoSendErr | todoReadErr | todoIdle
)
