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
// followed by another Readable; after a shorter one the next Readable comes when the peer has sent more. Who does not
// read gets no further Readable: that is how a connection is paused. Its bytes then stay in the kernel, and the peer
// is held back by TCP flow control.
//
// # Slow peers and slow consumers
//
// Output that the socket does not take is queued up to WriteBuffer bytes; past that [Conn.TryWrite] refuses with
// [ErrWouldBlock] and a Writable follows when the queue has fallen to half. MaxBuffered bounds all queues together. A consumer that does not receive makes the
// stream full: then reading and accepting pause, while queued output still goes out, timers run and connections close.
// Nothing grows meanwhile, and the loops sleep. A mailbox is bounded, and a full one is the poster's [ErrMailboxFull].
//
// # The end of a connection
//
// The peer's end of stream is a result of reading, not a close: a half-closed peer still gets its answer. Once the end
// was read and answered the library closes, unless AllowHalfOpen is set. [Conn.Close] flushes, sends a FIN and drains, in
// the background and within CloseTimeout, so that the peer gets every byte that was accepted. [Conn.Abort] resets.
// A Conn stays valid for ever; after the end its methods return errors that match net.ErrClosed.
//
// # Ownership
//
// No method keeps a slice that it was given, and none is handed a slice to keep, but for the frames of [Conn.Frames],
// which are valid until the next iteration. Built with -tags tcpiodebug, pooled memory is overwritten when it is given
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
// handshake has a goroutine for as long as it lasts, from its first whole record on; afterwards an idle connection has none.
// Everything else works as without TLS, on plain text. Half of the processors compute handshakes at once, so that
// established connections keep theirs; of the clients that wait, the newest is served first, and for one that has hung up
// nothing is computed.
//
// A read takes in at most 64 records; a Readable announces the rest. A peer may send 18 KiB of records in a row that bring
// no data; more of them end the connection.
//
// Memory: crypto/tls keeps, on an idle connection too, a buffer that has room for the largest record it has seen, under
// 1 KiB for small messages, and 18 to 34 KiB once a record of 16 KiB has come (it grows by doubling; there is no way to take
// it back). A record that has not arrived whole costs a buffer of 512 bytes, 4 KiB or 18 KiB, which holds what has come of
// it. A message of TLS's own that is never finished costs 64 KiB at most. In a handshake crypto/tls takes a
// ClientHello of up to 64 KiB and, if the config asks for one, a client's certificate of up to 256 KiB, and keeps the
// buffer. None of it counts against MaxBuffered, which is of output.
//
// For net/http use [http.Server.ServeTLS] on a [Listener.NetListener] without TLSConfig: requests then have their TLS
// state, and HTTP/2. With TLSConfig, net/http sees connections that are no *tls.Conn: Request.TLS is nil, and HTTP/1.1
// all that is spoken.
//
// # Limits
//
// Time limits (idle, read, write, handshake, close) and limits on who is served (MaxConns, MaxConnsPerIP, AcceptRate,
// Admit) are options; [Listener.Stats] counts what they did. A limit in time ends a connection with a *[LimitError].
//
// # Locks
//
// For those who change the package. A Conn's mu may be held when one of these is taken, each a leaf: stream.mu, timers.mu,
// limits.mu, workQueue.mu, epoll.mu, Group.mu, handshakes.mu, starved.mu. Only handshakes.mu is no leaf: under it the time of
// a handshake is moved, which takes timers.mu, then epoll.mu. Group.writing is taken before a Conn's mu. No user code runs
// under any of them.
//
// # Non-goals
//
// UDP, other systems than Linux (the package compiles there, and [Listen] returns errors.ErrUnsupported), a protocol
// framework, and an event loop for anything but sockets.
package tcpio
