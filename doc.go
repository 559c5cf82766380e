// Package tcpio is a TCP library for Linux. A few epoll loops serve all connections, and
// deliver what happens on them as typed events: on Go channels, or to a handler for each
// connection. An idle connection costs neither a goroutine nor a buffer.
//
//	l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: ":8080"})
//	...
//	g, ctx := errgroup.WithContext(ctx)
//	g.Go(func() error { return l.Serve(ctx) })
//	g.Go(func() error {
//		buf := make([]byte, 64<<10)
//		for ev := range l.Events() {
//			switch ev := ev.(type) {
//			case tcpio.Readable:
//				n, err := ev.Conn.TryRead(buf)
//				...
//			}
//		}
//		return nil
//	})
//	err = g.Wait()
//
// The package's examples (example_test.go) show each route, and what goes with it.
//
// # Routes
//
// A route is the way by which a connection's events reach your code. There are three, and the same
// rules hold on each:
//
//   - The stream: a channel with the events of all connections, [Listener.Events], or one for each
//     loop, [Listener.EventsPerLoop]. Take it when one goroutine can own all the state and does not
//     block, alone or in a select with other channels.
//   - A mailbox: [Conn.Events] is a channel with the events of one connection, and claims the
//     connection for the goroutine that receives from it. Take it when a session needs a goroutine
//     and a select of its own.
//   - An actor: a loop calls its Receive with the connection's events, one at a time; see [Actor].
//     [ListenerOptions].NewActor returns the actor of each new connection, [Conn.Attach] sets that
//     of one. Take it when state belongs to a connection, or when a handler blocks. An actor has no
//     goroutine while it has no event.
//
// [Conn.Post], [Conn.Ask] and [Conn.After] send a value to a connection from any goroutine; it
// arrives as a [Message] on the connection's route. A Conn is a net.Conn too: its blocking methods
// block the caller, not the loops. For code that is written for the package net,
// [Listener.NetListener] hands out connections without a route.
//
// # Events
//
// The events of one connection on one route have an order: [Opened] first, exactly once; then any
// of [Readable], [Writable], [Message], [Dialed], [Draining] and [RelayEnded]; [Closed] last,
// exactly once. No event of a connection follows its Closed, also when the system gives its
// descriptor number to another connection. Events of different connections have no order. When a
// connection changes its route, events that are already in the old channel are received there, and
// those behind them on the new route.
//
// [Listener.DialAsync] connects to others, and nothing waits for it: the answer is a Dialed. It
// comes among the Messages of the connection that asked, or else before the Opened of the new one.
// RelayEnded comes to the connection whose method Relay was called. [Failed] is of the listener
// itself, on the stream.
//
// Readable is level-triggered, although tcpio uses epoll edge-triggered: after a read that filled
// its buffer another Readable follows, unless one is still in the channel; after a shorter read the
// next one follows when the peer has sent more. A channel holds at most one Readable of a
// connection, and none once TryRead or Frames has returned io.EOF: while one is in the channel, the
// end is left to it. Read, which blocks, does not wait for that one. To pause a connection, do not
// read: no further Readable comes, its bytes stay in the kernel, and TCP flow control holds the
// peer back.
//
// # Slow peers and slow consumers
//
// Output that the socket does not take is queued, up to WriteBuffer bytes for a connection. Beyond
// that [Conn.TryWrite] takes nothing and returns [ErrWouldBlock]; a Writable follows when the queue
// has fallen to half. MaxBuffered bounds all queues together: 0 means a quarter of the memory.
//
// A [Group] waits for no member. One without room for a Write is closed with [ErrSlow]
// ([CloseSlow]), or misses that Write as a whole ([SkipSlow]): then [Group.Skipped] and [Stats]
// count it, and a Writable says when it has room, so that its handler can send what it missed.
//
// When the consumer of the stream does not receive, the channel fills up. Reading and accepting
// then pause, while queued output still goes out, timers run and connections close. Nothing grows
// meanwhile, and the loops sleep. At most MailboxSize posted values wait for a connection; Post
// refuses more with [ErrMailboxFull].
//
// # How a connection ends
//
// Reading returns io.EOF at the peer's end of stream. That closes nothing: a peer that has closed
// its own direction only (a half-close) still gets its answer. Your code closes the connection.
// These rules hold on every route, and for connections that were accepted, adopted or dialed:
//
//	what happens                    what the connection does                          Err
//	Close                           flush, FIN, discard, within CloseTimeout          nil, or why output did not go out
//	Abort                           reset at once                                     net.ErrClosed
//	io.EOF is read                  nothing: reading returns it again, writing works
//	… and nobody closes             Close after EOFTimeout without output             nil
//	Receive returns io.EOF          Close                                             nil
//	Receive returns another error   Close                                             that error
//	Receive or OnConnEvent panics   reset at once                                     *PanicError
//	OnConnEvent has read io.EOF     Close                                             nil
//	a frame is too long for Frames  Close                                             matches bufio.ErrTooLong; or split's error
//	a Group closes a slow member    Close                                             ErrSlow
//	StartTLS's handshake fails      Close                                             a *net.OpError around the cause
//	a read fails                    closed at once                                    the *net.OpError that the read returned
//	a write fails                   reading goes on: what came before is still there  the *net.OpError that the write returned
//	… or the peer resets, and       Close after EOFTimeout without a read             the *net.OpError of that
//	  nobody reads
//	a time limit                    Close; WriteStallTimeout: reset                   *TimeoutError
//	CloseTimeout, output left       reset                                             ErrCloseTimeout
//	Hijack                          the caller gets the socket                        ErrHijacked
//	it is in a Relay that ends      see Relays                                        ErrRelayEnded, if the other began it
//	Shutdown                        Draining, and your code closes                    as for Close
//	… and an actor without          Close behind the Receive of Draining              nil
//	  DrainTimeout
//	… and nobody closes in time     Close                                             ErrDrainTimeout; nil if the peer has ended
//	Listener.Close                  reset at once                                     net.ErrClosed
//
// Err is what [Conn.Err] returns after Closed. Close is [Conn.Close]: in the background it sends
// what is queued (flush), then a FIN, and throws away input until the peer's end of stream
// (discard), so that the peer gets every byte that was accepted.
//
// EOFTimeout is a safety net for programs that ignore io.EOF. It does not end a connection while
// output is queued, being written or copied, or while the actor's Receive runs. Where a goroutine
// of yours takes longer to begin an answer, raise it. Connections that NetListener or Dial handed
// out as net.Conns have none before their first route. When descriptors run out, or MaxConns is
// reached, the connections that have waited longest for EOFTimeout are closed first.
//
// It is one for connections that are paused, too. A reset makes no event on a connection whose last
// Readable nobody has answered; it ends what [Conn.Context] returns, at once. What arrived before
// the reset can be read for as long as somebody reads some of it within EOFTimeout.
//
// tcpio records how each direction ended, whether a Try method, a blocking call, a copy, a
// callback, a raw connection or Hijack met it first; afterwards all of them report the same, and
// none reports a reset as an end of stream. Once a connection has ended, its methods return errors
// that match net.ErrClosed. If the system ended it they match the system's error too:
// errors.Is(err, syscall.ECONNRESET). A Conn stays valid for ever.
//
// # Relays
//
// [Conn.Relay] passes bytes between two connections, both ways: a proxy in one call. It has no
// goroutine, and no buffer while nothing is passed on. A peer that reads slowly holds the other one
// back. A peer receives an end of stream only where the other peer has sent one, and behind its
// last byte. Whatever else ends one of the connections resets the other: no stream that was cut
// looks whole. Readable and Writable are not sent while a relay reads and writes; other events are.
// [RelayEnded] says that it is over, [Relay.End] why.
//
// # Ownership
//
// tcpio never keeps a slice that you pass in. A frame from [Conn.Frames] is valid until the next
// iteration; copy it to keep it. Until then you may change it in place. In a build with -tags
// tcpiodebug, tcpio overwrites pooled memory when it is given back.
//
// # Running and stopping
//
// A panic in your code ends what it was called for, a connection say, and no more. It is logged, to
// slog.Default() unless [ListenerOptions.Logger] says otherwise, and counted in [Stats].
//
// [Listener.Serve] runs the loops until its ctx ends, or [Listener.Shutdown] or [Listener.Close] is
// called. Run it in an errgroup beside the consumers: at the end it closes the channels behind
// their last event, so that range loops end by themselves. Shutdown sends Draining to every
// connection, gives its handler time to answer what is under way (DrainTimeout), and then closes
// the connection in order. Shutdown and Close wait until descriptors are closed, not until events
// are received; any goroutine may call them, also a consumer or a handler. [Listener.File] gives
// the listening socket, and [Listener.Files] all of them, to a process that replaces this one, as
// examples/restart does.
//
// # TLS
//
// [ListenerOptions].TLSConfig serves TLS with the standard crypto/tls, and [Conn.StartTLS] upgrades
// one connection. A handshake has a goroutine from its first whole record to its end; afterwards an
// idle connection has none. Everything else works as without TLS, on plain text. At most half of
// the processors compute handshakes at once, so that established connections keep theirs. Of the
// clients that wait, the newest is served first, and one that has hung up is not served.
//
// One read takes in at most 64 records; a Readable announces the rest. When a peer sends more than
// 18 KiB of records in a row that bring no data, its connection is closed.
//
// [Listener.DialTLS], the TLS of a [DialRequest] and [Conn.StartTLSClient] are the client's side.
// They share MaxHandshakes and the processors' half with the server's handshakes, and leave an idle
// connection without a goroutine too.
//
// Memory: crypto/tls keeps a buffer for the largest record that a connection has received, also
// while it is idle: under 1 KiB for small messages, and 18 to 34 KiB once a record of 16 KiB has
// come (the buffer grows by doubling, and cannot be taken back). A record that has not arrived
// whole is kept in a buffer of 512 bytes, 4 KiB or 18 KiB. A message of TLS itself that the peer
// never completes takes 64 KiB at most. In a handshake crypto/tls takes a ClientHello of up to 64
// KiB and, if the config asks for one, a client's certificate of up to 256 KiB, and keeps the
// buffer. MaxBuffered, which is for output, counts none of it.
//
// For net/http use [http.Server.ServeTLS] on a [Listener.NetListener] without TLSConfig: requests
// then have their TLS state, and HTTP/2 works. With TLSConfig net/http gets connections that are no
// *tls.Conn: Request.TLS is nil, and only HTTP/1.1 works.
//
// # Behind a proxy
//
// [ListenerOptions].Preface looks at the first bytes of an accepted connection before it opens, and
// before TLS. It may take the header of a proxy, and tell the client's address by
// [Conn.SetRemoteAddr]: RemoteAddr returns that one, and MaxConnsPerIP counts it. The module
// proxyproto has a Preface for the PROXY protocol.
//
// # Limits
//
// Options limit three things; [PublicDefaults] has values for the open internet:
//
//   - Times: IdleTimeout, InputTimeout, ReadStallTimeout, FrameTimeout, WriteStallTimeout,
//     PrefaceTimeout and HandshakeTimeout end a connection with a *[TimeoutError]. How
//     CloseTimeout, DrainTimeout and EOFTimeout end one is in the table above. TCPUserTimeout is
//     the kernel's.
//   - Who is served: MaxConns, MaxConnsPerIP, AcceptRate, Admit, Preface.
//   - What is kept: WriteBuffer and MaxFrame for a connection, MaxBuffered for the queued output of
//     all (a quarter of the memory by default), MailboxSize, MaxPreface, MaxHandshakes, MaxBlocked.
//
// [Listener.Stats] counts the connections that they ended or refused.
//
// # Words
//
//	route          how a connection's events reach your code: stream, mailbox or actor
//	stream         the channel with the events of all connections, or of one loop's; never their bytes
//	mailbox        what waits for one connection: its events, and the values posted to it, in order
//	claimed        of a connection: a goroutine receives from its mailbox itself, by Conn.Events
//	actor          a value of yours: a loop takes events out of the mailbox, and calls its Receive
//	end of stream  the peer's FIN, read as io.EOF; a half-close if the peer goes on reading
//	flush          to send what is queued
//	discard        to read input and throw it away, behind the FIN of Close
//	drain          what Shutdown does: Draining to each connection, time to finish, then Close
//	backpressure   not to read, so that TCP's flow control holds the sender back
//
// # Non-goals
//
// UDP, other systems than Linux (the package compiles there, and [Listen] returns
// errors.ErrUnsupported), a protocol framework, and an event loop for anything but sockets.
package tcpio
