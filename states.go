package tcpio

// The states of a connection's parts; phase, in conn.go, is the life of the whole. What is in one
// of several states has a type of its own. What is only true or false is a mark in a set.

// A set has marks of one kind, a bit each.
type set[M ~uint8] struct{ marks M }

func (s set[M]) has(any M) bool { return s.marks&any != 0 }
func (s set[M]) empty() bool    { return s.marks == 0 }
func (s *set[M]) add(m M)       { s.marks |= m }
func (s *set[M]) drop(m M)      { s.marks &^= m }

// reach moves *stage forward to the given one. It does nothing if *stage is there or beyond.
func reach[S ~uint8](stage *S, to S) { *stage = max(*stage, to) }

// An origin is where a connection comes from.
type origin uint8

const (
	accepted origin = iota
	refused         // accepted, and kept only until its peer has the reply; it has no ID
	adopted         // by Listener.Adopt
	dialed          // by Listener.Dial or DialAsync
)

// A peerEnd is how far the peer's end of stream has come.
type peerEnd uint8

const (
	peerOpen  peerEnd = iota
	peerRead          // a read has met it
	peerTold          // the user has received io.EOF
	peerTimed         // EOFTimeout runs: the connection is in its loop's eofs, not in limits
)

// A sendEnd is how far our own end has come.
type sendEnd uint8

const (
	sendOpen sendEnd = iota
	sendShut         // CloseWrite was called; the FIN is behind what is queued
	sendFin          // our FIN is out
)

// writing is which write is under way. No other bytes come between those of one write.
type writing uint8

const (
	writeFree writing = iota
	writeHeld         // a blocking write, or a copy
	writeBulk         // a large TryWrite, which gives up mu in between; Close waits for its end
)

// A claim says which events a connection has.
type claim uint8

const (
	claimed   claim = iota // all
	unclaimed              // Opened alone, until Events or Attach
	unheard                // likewise, and Opened waits for the peer's first bytes
)

// A routeMark is a fact about a connection's route.
type routeMark uint8

const (
	routeOpened  routeMark = 1 << iota // Opened was emitted
	routeQueued                        // in its stream's queue
	routeRunning                       // a goroutine is inside its actor
	routeRelayed                       // a Relay reads and writes the connection, for ever
)

// An event is one kind of the events that are no message.
type event uint8

const (
	pendOpened event = 1 << iota
	pendReadable
	pendWritable
	pendDraining
	pendRelayEnded
	pendClosed
	pendDialed // the answer to the DialAsync that made the connection, which connExt has
)

// A sockMark is a fact about a connection's socket.
type sockMark uint8

const (
	sockNew     sockMark = 1 << iota // register has not returned yet: the descriptor stays open
	sockUnsure                       // a short read does not prove that the socket is empty
	sockHeard                        // a byte has arrived
	sockFinSeen                      // the peer's FIN was read, which is not TLS's end of stream
	sockTimed                        // activity is noted: the connection has, or had, a time limit
	sockReset                        // unlock closes the descriptor with a reset
	sockWaiting                      // bytes wait for room in the socket, with nothing queued
	sockFailed                       // it has failed, and what came before that may be left to read
)

// A userMark is a fact about what the user has asked for and received.
type userMark uint8

const (
	userReadable  userMark = 1 << iota // a Readable is outstanding: no read has followed it yet
	userWantsRoom                      // TryWrite refused: a Writable is owed
	userStarved                        // a write was refused for MaxBuffered
)

// A want is a reason for a connection to be in its loop's queue; see wantLocked and runQueue.
type want uint8

const (
	wantTurn    want = 1 << iota // its actor is to run
	wantFlush                    // the rest of the output is to be sent; no edge will say so
	wantDiscard                  // it is closing, and the rest of the input is to be thrown away
	wantPreface                  // Preface is to see what has arrived
	wantRelay                    // its relay has bytes to move, or has ended
)

// A todo is something that unlock acts on. Code that holds mu adds it. settleLocked acts on the
// first four before unlock releases mu, and unlock on the others after that.
type todo uint8

const (
	todoProgress todo = 1 << iota // there may be room for writes, or nothing left before the FIN
	todoSendErr                   // writing has failed
	todoReadErr                   // a read has returned why reading failed
	todoIdle                      // a turn is over, or the user has received io.EOF

	todoDrop    // dropRest is to drop the timers and groups that are left
	todoClose   // finish is to close the descriptor, once fdUsedLocked is false
	todoPoll    // pollForLoop is to be called: every Readable that was delivered is answered
	todoContext // what Context has returned is to end

	todoSettle = todoProgress | todoSendErr | todoReadErr | todoIdle
)
