// Package websocket serves WebSocket connections (RFC 6455) on the loops of tcpio: an idle peer
// costs neither a goroutine nor a buffer. Framing, masking, the handshake's rules and
// permessage-deflate (RFC 7692) come from github.com/gobwas/ws; what is here is their connection
// to events.
//
//	s, err := websocket.Listen(&tcpio.ListenerOptions{Addr: ":8080"}, &websocket.Options{
//		NewActor: func(c *websocket.Conn) websocket.Actor { return websocket.ActorFunc(handle) },
//	})
//	...
//	err = s.Serve(ctx)
//
//	func handle(ev websocket.Event) error {
//		switch ev := ev.(type) {
//		case websocket.Text:
//			return ev.Conn.WriteText(ev.Data)
//		}
//		return nil
//	}
//
// # Routes
//
// A connection's events reach your code on one of three routes, as in tcpio:
//
//   - The stream: [Server.Events] iterates over the events of all connections on one goroutine,
//     which must not block. To select from other channels, receive from the channel of
//     [Server.Listener] and pass what comes to [Server.Receive].
//   - A mailbox: [Conn.Events] claims a connection for a goroutine of its own, which may block.
//   - An actor: a loop calls its Receive; see [Actor]. It may block.
//
// A message is delivered whole, and a text is valid UTF-8. On the stream and in an actor its bytes
// are valid until the next event, because they lie in the buffer that they were read into; on a
// mailbox they are a copy. [Options].PieceSize has messages delivered in pieces instead.
//
// # Upgrading
//
// [Listen] opens a port of its own. [Server.Upgrade] takes over the connection of a request in any
// net/http handler, so that one port serves pages and sockets. [Server.Dial] is for clients.
// A request from a page of another host is refused, unless [Options].Origins names it.
//
// # Reading
//
// A Readable of the connection leads to one read of at most 32 KiB into a buffer from a pool, which
// is decoded at once, in place, on the goroutine that has the event: so many bytes are its budget,
// and tcpio gives other connections their turns in between. What a few compressed bytes can become
// is bounded likewise: a turn decompresses 256 KiB of a message, and another one goes on. Only what
// has not arrived whole is kept: the bytes of a header, and a message as far as it has come, in
// memory that grows with what has arrived and not with what a header promises. A message of which
// much is missing is read straight into its place.
//
// # Writing and slow peers
//
// TryWriteText and TryWriteBinary never block: they take a message or return
// [tcpio.ErrWouldBlock], and a Writable follows. WriteText and WriteBinary wait for room; they send
// a long message in fragments of 64 KiB, between which pings are answered. A [Group] leaves out, or
// closes, a member that has no room; [Writable] and [Conn.Skipped] say how many messages it missed.
// Its frames, and what waits of them in queues, are shared by all members.
//
// A handler that cannot take more calls [Conn.Pause], or blocks if it may: nothing more is read,
// and TCP holds the peer back. Nothing grows meanwhile.
//
// # How a connection ends
//
//	what happens                          the peer is sent       Closed
//	Close                                 its code               its code, Local
//	the peer's Close frame                the same code          its code, Peer
//	Receive returns io.EOF                1000                   1000, Local
//	Receive returns another error         1011                   1011, Local; Err is that error
//	Receive panics                        1011                   1011, Local; Err: *tcpio.PanicError
//	NewActor returns nil                  1008                   1008, Local
//	no pong                               1008                   1008, Local; Err is a *FrameError
//	MaxRate, MessageTimeout               1008                   1008, Local; Err is a *FrameError
//	a violation of the protocol           1002                   1002, Local; Err is a *FrameError
//	NoText, NoBinary                      1003                   1003, Local; Err is a *FrameError
//	text that is not UTF-8, bad deflate   1007                   1007, Local; Err is a *FrameError
//	MaxMessage, MaxFrame                  1009                   1009, Local; Err is a *FrameError
//	CloseSlow of a Group                  1013                   1013, Local; Err is tcpio.ErrSlow
//	Shutdown, then DrainTimeout           1001                   1001, Local
//	TCP's end, a reset, a time limit      nothing                1006, Neither; Err is the cause
//
// The Close frame for a limit, 1003, 1008 or 1009, has a reason that names the limit.
//
// After a Close of ours the peer's Close frame is awaited for CloseTimeout; after a violation, and
// after the peer's own Close, the connection under it is closed at once, which still flushes and
// drains it. What was valid before a violation was delivered before.
//
// # What an idle peer costs
//
// Its Conn of 200 bytes beside the core's, and nothing else: no goroutine, no buffer, no timer. All
// deadlines of a server, of handshakes, pings and closing, are in lists behind one timer. With
// permessage-deflate nothing is added, since no context is kept between messages.
//
// # How it works
//
// A Conn has a phase (opening, open, closing, over; see the type phase) and a lock, which is held
// for a write's one call of TryWrite and never while user code runs. Decoding belongs to one turn
// at a time, whichever goroutine has the event: a second one, when the route has changed
// meanwhile, notes that and leaves (turn.enter). Where a turn must stop early, because the body
// breaks, pauses or moves the connection, it keeps the rest and posts a nudge to the connection
// itself, so that the rest follows on the route of then.
//
// Locks are taken in this order: Conn.writing, Group.writing, Server.naming; Conn.mu; then those of
// tcpio, Group.mu or timers.mu, which are leaves.
//
// # Non-goals
//
// HTTP/2 and HTTP/3 (RFC 8441, RFC 9220), context takeover, and extensions of others.
package websocket
