package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rabbit-backend/tcpio"
	"golang.org/x/sync/errgroup"
)

// What one connection may cost, in bytes unless said otherwise. One that is idle costs the client
// struct. One that never finishes a request costs what it sent of it, maxRequest at most; one that
// never finishes a transaction, as much again (maxQueue), and what it watches (maxWatched). One
// that reads nothing costs two batches of replies, one queued by tcpio and one waiting behind it; a
// batch is up to flushAt and the reply that went past that, maxReply at most. Many short replies
// fill the queue to writeBuffer instead.
const (
	writeBuffer = 256 << 10
	flushAt     = 64 << 10 // a batch ends when its replies are this long
	maxBatch    = 2048     // or after this many commands, so that one peer's pipeline does not stop the others
	maxReply    = 4 << 20  // what MGET, CLIENT LIST and EXEC may answer; it must exceed maxBulk, for GET
	maxName     = 128      // CLIENT SETNAME

	sweepEvery = 100 * time.Millisecond
	sweepLimit = 10_000 // keys a sweep may remove before the connections get their turn again
)

// listen binds addr with the limits that the server counts on. A nil config means no TLS.
func listen(addr string, config *tls.Config) (*tcpio.Listener, error) {
	return tcpio.Listen(&tcpio.ListenerOptions{
		Addr:        addr,
		TLSConfig:   config,
		WriteBuffer: writeBuffer,
		// The scanner refuses a request over maxRequest itself, with a proper reply; it needs to see one
		// header more.
		MaxFrame: maxRequest + maxHeader,
		// Redis takes as many, and says so to the next.
		MaxConns:    10_000,
		RefuseReply: appendError(nil, "ERR max number of clients reached"),
		// Who takes nothing of its replies for so long is cut off, and what waited for it is free.
		WriteStallTimeout: time.Minute,
		// At the end, how long replies in client.pending may wait.
		DrainTimeout: 5 * time.Second,
	})
}

// serve runs s on l until ctx ends, and returns when every connection is closed.
func serve(ctx context.Context, l *tcpio.Listener, s *server, tick <-chan time.Time) error {
	events := l.Events()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Serve(ctx) })
	g.Go(func() error { s.run(events, tick); return nil })
	return g.Wait()
}

// server answers commands. All of it belongs to the goroutine in run, which is why nothing here has
// a lock.
type server struct {
	// Immutable.
	commands map[string]*command
	log      *slog.Logger
	started  time.Time
	split    bufio.SplitFunc

	// Owned by the loop.
	store    *store
	clients  map[uint64]*client
	current  *client   // whose requests split is looking at
	broken   error     // what split found wrong there
	executed uint64    // commands, for INFO
	accepted uint64    // connections, for INFO
	warned   time.Time // when the last HTTP request was logged

	// Owned by the loop, and reused for every batch of every connection.
	parser parser
	out    []byte // the replies of this batch
}

// client is what the server keeps for a connection, as its Conn's data.
type client struct {
	conn    *tcpio.Conn
	scanner scanner
	name    string
	resp    int          // the protocol's version: 2, or 3 behind HELLO 3
	tx      *transaction // between MULTI and EXEC
	watch   *watch       // of WATCH; nil when there is none
	pending []byte       // replies that TryWrite refused; while there are any, nothing is read
	closing bool         // nothing more is read; close when the replies are out
}

func newServer(st *store, log *slog.Logger) *server {
	s := &server{
		commands: newCommands(),
		log:      log,
		started:  st.now(),
		store:    st,
		clients:  make(map[uint64]*client),
	}
	// One function value for the server: a method value of each scanner would be an allocation for
	// each Readable.
	s.split = func(data []byte, atEOF bool) (int, []byte, error) {
		advance, token, err := s.current.scanner.split(data, atEOF)
		if err != nil {
			// An error of split's would close the connection before the peer could be told what was wrong.
			s.broken = err
			return len(data), nil, bufio.ErrFinalToken
		}
		return advance, token, nil
	}
	return s
}

// run handles events until the channel is closed. Each tick it removes keys that ran out.
func (s *server) run(events <-chan tcpio.Event, tick <-chan time.Time) {
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				return
			}
			s.handle(ev)
		case <-tick:
			s.store.sweep(sweepLimit)
		}
	}
}

func (s *server) handle(ev tcpio.Event) {
	switch ev := ev.(type) {
	case tcpio.Opened:
		cl := &client{conn: ev.Conn, resp: 2}
		ev.Conn.SetData(cl)
		s.clients[ev.Conn.ID()] = cl
		s.accepted++
	case tcpio.Readable:
		s.read(clientOf(ev.Conn))
	case tcpio.Writable:
		s.resume(clientOf(ev.Conn))
	case tcpio.Draining:
		// Nothing more is run, and what was run is answered. Close flushes only what tcpio has.
		cl := clientOf(ev.Conn)
		cl.closing = true
		s.finish(cl)
	case tcpio.Closed:
		s.discard(clientOf(ev.Conn))
		delete(s.clients, ev.Conn.ID())
		if err := ev.Conn.Err(); err != nil {
			s.log.Debug("connection closed", "id", ev.Conn.ID(), "err", err)
		}
	case tcpio.Failed:
		s.log.Warn("listener", "err", ev.Err)
	}
}

func clientOf(c *tcpio.Conn) *client { return c.Data().(*client) }

// read executes one batch of what the peer sent and writes the replies at once.
func (s *server) read(cl *client) {
	if cl.pending != nil || cl.closing {
		return // Not reading is the pause: the peer's sending side fills up. resume comes back here.
	}
	s.current = cl
	begin := s.executed
	for request, err := range cl.conn.Frames(s.split) {
		if err != nil {
			s.fail(cl, err)
			break
		}
		args, err := s.parser.parse(request)
		if err != nil {
			s.fail(cl, err)
			break
		}
		s.execute(cl, args, request)
		if cl.closing || len(s.out) >= flushAt || s.executed-begin >= maxBatch {
			break // What is left is announced by another Readable, behind those of the others.
		}
	}
	if s.broken != nil {
		s.fail(cl, s.broken)
		s.broken = nil
	}
	s.write(cl)
}

// fail ends a connection whose input ended. A peer that broke the protocol is told.
func (s *server) fail(cl *client, err error) {
	var perr protocolError
	if errors.As(err, &perr) {
		s.out = appendError(s.out, "ERR "+perr.Error())
	} else if !errors.Is(err, io.EOF) {
		s.log.Debug("reading", "id", cl.conn.ID(), "err", err)
	}
	cl.closing = true
}

// write sends the replies of the batch. When the peer is so slow that they cannot even be queued,
// they wait in the client, and the client waits for Writable.
func (s *server) write(cl *client) {
	if len(s.out) > 0 {
		_, err := cl.conn.TryWrite(s.out)
		switch {
		case errors.Is(err, tcpio.ErrWouldBlock):
			cl.pending = bytes.Clone(s.out)
		case err != nil:
			cl.closing = true
		}
	}
	if cap(s.out) > 4*flushAt {
		s.out = nil // One long reply is no reason to keep its room for ever.
	}
	s.out = s.out[:0]
	s.finish(cl)
}

// resume tries the waiting replies again and then reads on.
func (s *server) resume(cl *client) {
	if cl.pending == nil {
		return
	}
	_, err := cl.conn.TryWrite(cl.pending)
	if errors.Is(err, tcpio.ErrWouldBlock) {
		return
	}
	cl.pending = nil
	cl.closing = cl.closing || err != nil
	s.finish(cl)
	s.read(cl)
}

// finish closes a connection that has had its last reply. Close still delivers what is queued.
func (s *server) finish(cl *client) {
	if cl.closing && cl.pending == nil {
		cl.conn.Close()
	}
}

// execute appends the reply to one request, which is args in wire form.
func (s *server) execute(cl *client, args [][]byte, request []byte) {
	if len(args) == 0 {
		return
	}
	if isHTTP(args[0]) {
		s.refuseHTTP(cl)
		return
	}
	s.executed++
	cmd, err := s.find(args)
	switch {
	case err == nil && (cl.tx == nil || cmd.now):
		s.call(cl, cmd, args)
		return
	case err == nil:
		if err = s.queue(cl.tx, request); err == nil {
			return
		}
	case cmd != nil && cmd.name == "exec":
		s.discard(cl)
		err = replyError("EXECABORT Transaction discarded because of: " + strings.TrimPrefix(err.Error(), "ERR "))
	}
	if cl.tx != nil {
		cl.tx.refuse()
	}
	s.out = appendError(s.out, err.Error())
}

// call appends the reply to a request for which find has found no error.
func (s *server) call(cl *client, cmd *command, args [][]byte) {
	if err := cmd.run(s, cl, args); err != nil {
		s.out = appendError(s.out, err.Error())
	}
}

// refuseHTTP ends a connection on which a browser speaks. A page can make its visitor's browser
// send a POST to any port of the visitor's machine, with commands for this server in the body
// (cross-protocol scripting). Every line before them would be answered as an unknown command; the
// first of POST and Host: ends it without a word, as in Redis. Once a minute it is logged.
func (s *server) refuseHTTP(cl *client) {
	cl.closing = true
	s.out = s.out[:0]
	if now := s.store.now(); s.warned.IsZero() || now.Sub(s.warned) >= time.Minute {
		s.warned = now
		s.log.Warn("a POST or Host: line instead of a command, closing: possible cross-protocol scripting",
			"id", cl.conn.ID(), "addr", cl.conn.RemoteAddr())
	}
}

// lookup finds a command by its name in any case, without an allocation.
func (s *server) lookup(name []byte) *command {
	var lower [maxCommandName]byte
	if len(name) > len(lower) {
		return nil
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		lower[i] = c
	}
	return s.commands[string(lower[:len(name)])]
}

func wrongArity(name string) error {
	return replyError("ERR wrong number of arguments for '" + name + "' command")
}

// unknownCommand quotes the request as Redis does, 128 bytes of the name and about as many of the
// arguments.
func unknownCommand(args [][]byte) error {
	const limit = 128
	var quoted []byte
	for _, arg := range args[1:] {
		if len(quoted) >= limit {
			break
		}
		quoted = fmt.Appendf(quoted, "'%s' ", arg[:min(len(arg), limit-len(quoted))])
	}
	return replyError(fmt.Sprintf("ERR unknown command '%s', with args beginning with: %s",
		args[0][:min(len(args[0]), limit)], quoted))
}

// info is the text of INFO, or those sections of it that are asked for by name.
func (s *server) info(sections [][]byte) string {
	var b strings.Builder
	section := func(name string, lines ...string) {
		wanted := len(sections) == 0 || slices.ContainsFunc(sections, func(arg []byte) bool {
			switch strings.ToLower(string(arg)) {
			case strings.ToLower(name), "default", "all", "everything":
				return true
			}
			return false
		})
		if !wanted {
			return
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		fmt.Fprintf(&b, "# %s\r\n", name)
		for _, line := range lines {
			b.WriteString(line + "\r\n")
		}
	}
	section("Server", "server_name:tcpio-kv", "redis_version:"+redisVersion, "redis_mode:standalone",
		fmt.Sprintf("uptime_in_seconds:%d", int64(s.store.now().Sub(s.started).Seconds())))
	section("Clients", fmt.Sprintf("connected_clients:%d", len(s.clients)))
	section("Stats", fmt.Sprintf("total_connections_received:%d", s.accepted),
		fmt.Sprintf("total_commands_processed:%d", s.executed), fmt.Sprintf("expired_keys:%d", s.store.expired))
	var db []string
	if n := len(s.store.items); n > 0 {
		db = append(db, fmt.Sprintf("db0:keys=%d,expires=%d", n, len(s.store.due)))
	}
	section("Keyspace", db...)
	return b.String()
}

// listClients is the text of CLIENT LIST. omem counts the bytes that wait for the peer to read.
func (s *server) listClients() ([]byte, error) {
	var b []byte
	for _, id := range slices.Sorted(maps.Keys(s.clients)) {
		if len(b) > maxReply {
			return nil, errBigReply
		}
		b = append(b, s.clients[id].String()...)
	}
	return b, nil
}

// String is the client's line in CLIENT LIST. Its one flag of Redis's is N, normal; P, for paused,
// is ours.
func (cl *client) String() string {
	flags := "N"
	if cl.pending != nil {
		flags = "P"
	}
	multi := -1
	if cl.tx != nil {
		multi = cl.tx.n
	}
	return fmt.Sprintf("id=%d addr=%s name=%s flags=%s db=0 multi=%d resp=%d omem=%d\n", cl.conn.ID(), cl.conn.RemoteAddr(),
		cl.name, flags, multi, cl.resp, cl.conn.Buffered()+len(cl.pending))
}
