// Package tcpio is a TCP server library for Linux: an epoll loop turns readiness into typed events on a Go channel, every
// connection has an actor's mailbox, and an idle connection keeps neither a goroutine nor a buffer.
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
// # Routes
//
// A connection's events take one of three routes, under one contract:
//
//   - The stream: [Listener.Events], or [Listener.Streams] with a channel for each loop. For a goroutine that owns all
//     the state, alone or in a select beside other channels.
//   - A mailbox of its own: [Conn.Events] claims the connection for a goroutine with a select of its own.
//   - An actor: [ListenerOptions].Actor for every connection or [Conn.Attach] for one. The loop runs it, without a goroutine
//     of its own, and it may block.
//
// # Events
//
// For one connection and one route: [Opened] first, exactly once; then [Readable], [Writable], [Message] and [Draining];
// [Closed] last, exactly once. Nothing of a connection comes after its Closed, whatever becomes of its descriptor number. Between
// connections there is no order. When a connection changes its route, what is already in the old channel comes out
// there, and the new route begins behind it.
//
// Readable is level-triggered to the user although epoll is edge-triggered underneath: a read that filled its buffer is
// followed by another Readable, unless one is still in the channel; after a shorter one the next Readable comes when the peer
// has sent more. There is never more than one of a connection in a channel, and none behind an io.EOF that TryRead or Frames
// returned: while one is in the channel, the end is left to it. Read, which blocks, does not wait for that one. A
// consumer that does not read gets no further Readable: that is how a connection is paused. Its bytes then stay in the kernel,
// and the peer is held back by TCP flow control.
//
// # Slow peers and slow consumers
//
// Output that the socket does not take is queued up to WriteBuffer bytes; past that [Conn.TryWrite] refuses with
// [ErrWouldBlock] and a Writable follows when the queue has fallen to half. MaxBuffered bounds all queues together. A consumer that does not receive makes the
// stream full: then reading and accepting pause, while queued output still goes out, timers run and connections close.
// Nothing grows meanwhile, and the loops sleep. A mailbox is bounded, and a full one is the poster's [ErrMailboxFull].
//
// # How a connection ends
//
// The peer's end of stream is a result of reading, and closes nothing: a half-closed peer gets its answer, however long that
// takes. The user closes. One rule holds for every route and for every origin of a connection, accepted, adopted or dialled:
//
//	what happens                    what the connection does                          Err
//	Close                           flush, FIN, drain, within CloseTimeout            nil, or why output did not go out
//	Abort                           reset at once                                     net.ErrClosed
//	io.EOF is read                  nothing: reading returns it again, writing works
//	… and nobody closes             Close after EOFTimeout without output             nil
//	Receive returns io.EOF          Close                                             nil
//	Receive returns another error   Close                                             that error
//	Receive panics                  reset at once                                     *PanicError
//	OnConnEvent has read io.EOF     Close                                             nil
//	a read fails                    released at once                                  the *net.OpError that the read returned
//	a write fails                   reading goes on: what came before is still there  the *net.OpError that the write returned
//	a time limit                    Close; WriteTimeout: reset                        *LimitError
//	CloseTimeout, output left       reset                                             ErrCloseTimeout
//	Hijack                          the descriptor is another's                       ErrHijacked
//	Shutdown                        Draining, then Close                              as for Close
//	Listener.Close                  reset at once                                     net.ErrClosed
//
// EOFTimeout is a safety net for programs that ignore io.EOF. It waits while output is queued, being written or copied, and
// while the actor's Receive runs. Connections that NetListener or Dial handed out as net.Conns have none before their first
// route. When descriptors run out, or MaxConns is reached, the connections that have waited for it longest are closed first.
//
// How a direction ended is remembered in one place, whoever met it first: a Try method, a blocking call, a copy, a callback, a raw
// connection, Hijack. All of them report the same. A reset is never an end of stream on any of them. After the end methods return
// errors that match net.ErrClosed, and, if the system ended the connection, its error too (errors.Is(err, syscall.ECONNRESET)).
// A Conn stays valid for ever.
//
// [Conn.Close] flushes, sends a FIN and drains in the background, so that the peer gets every byte that was accepted.
//
// # Ownership
//
// tcpio never keeps a slice that you pass in. A frame from [Conn.Frames] is valid until the next iteration; copy it to keep it.
// Until then you may change it in place. Built with -tags tcpiodebug, pooled memory is overwritten when it is given
// back.
//
// # Running and stopping
//
// [Listener.Serve] belongs in an errgroup: it runs until its ctx ends, or [Listener.Shutdown] or [Listener.Close], and the
// channels are closed behind the last event, so that range loops end by themselves. Shutdown tells every connection by
// Draining, gives its handler time to answer what is under way and to say goodbye (DrainTimeout), and closes in order.
// Shutdown and Close wait for descriptors and not for events; any goroutine may call them, a consumer or a handler too.
// [Listener.File] hands the listening socket to a successor, as examples/restart does.
//
// # TLS
//
// [ListenerOptions].TLSConfig serves TLS with the standard crypto/tls, and [Conn.StartTLS] upgrades one connection. A
// handshake has a goroutine for as long as it lasts, from a whole ClientHello on; afterwards an idle connection has none.
// Everything else works as without TLS, on plain text.
//
// # Limits
//
// Time limits (idle, read, write, handshake, close) and limits on who is served (MaxConns, MaxConnsPerIP, AcceptRate,
// Admit) are options; [Listener.Stats] counts what they did. A limit in time ends a connection with a *[LimitError].
//
// # Non-goals
//
// UDP, other systems than Linux (the package compiles there, and [Listen] returns errors.ErrUnsupported), a protocol
// framework, and an event loop for anything but sockets.
package tcpio
