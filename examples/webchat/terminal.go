package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/websocket"
)

// A client speaks the page's protocol for a terminal. One goroutine has it.
type client struct {
	out               io.Writer
	token, name, room string

	epoch  string // of the room, and the last line it was given of it
	last   uint64
	n      uint64
	unsaid []request // in the order of n, until the server has said them
	sent   int       // how many of these are on their way over conn
	tokens float64   // lines that may be sent at once
	filled time.Time // when tokens was last added to
	pace   <-chan time.Time

	conn   *websocket.Conn
	joined bool // the welcome has come over conn
	told   bool // who is there, since then
}

// inFlight bounds the lines that wait to be said. With as many nothing more is read from the
// terminal.
const inFlight = 32

// lineEvery is the pace when there are many: the server bounds the rate.
const lineEvery = 10 * time.Millisecond

// errRefused ends a client that the server does not take.
type errRefused string

func (e errRefused) Error() string { return string(e) }

// remote is what the flags say of a terminal.
type remote struct {
	pages, ca  string // URLs with commas between them; a file with certificates to trust, or empty
	name, room string
	ping       time.Duration
}

// terminal takes part in a room from a terminal: lines of in are said, and what is said is written
// to out. It connects again when the connection is lost, and ends with in.
func terminal(ctx context.Context, in io.Reader, out io.Writer, r remote) error {
	to, err := sockets(r.pages)
	if err != nil {
		return err
	}
	if r.ping < time.Millisecond {
		return errPing(r.ping)
	}
	trust, err := trusted(r.ca)
	if err != nil {
		return err
	}
	if r.name == "" {
		r.name = "user-" + strings.ToLower(rand.Text()[:6])
	}
	s, err := websocket.Listen(&tcpio.ListenerOptions{Network: "none"}, &websocket.Options{ // it only dials
		NewActor:     func(*websocket.Conn) websocket.Actor { return nil },
		PingInterval: r.ping,
		PongTimeout:  pongTimeout(r.ping),
		ClientTLS:    trust,
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	typed := make(chan string)
	go func() { // it ends with in, which may be after us
		defer close(typed)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			select {
			case typed <- lines.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	var g errgroup.Group
	g.Go(func() error { return s.Serve(ctx) })
	c := &client{out: out, token: rand.Text(), name: r.name, room: r.room}
	err = c.run(ctx, s, to, typed)
	stop()
	return errors.Join(err, g.Wait())
}

// trusted is the configuration that trusts the certificates in file, or, without one, those that the
// system trusts.
func trusted(file string) (*tls.Config, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("-ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("-ca: %s has no certificate", file)
	}
	return &tls.Config{RootCAs: roots}, nil
}

// sockets returns the URLs of the WebSockets of pages, which have commas between them.
func sockets(pages string) (to []string, err error) {
	for page := range strings.SplitSeq(pages, ",") {
		at, err := url.Parse(page)
		if err != nil {
			return nil, fmt.Errorf("-connect: %w", err)
		}
		scheme := map[string]string{"http": "ws", "ws": "ws", "https": "wss", "wss": "wss"}[at.Scheme]
		if scheme == "" || at.Host == "" {
			return nil, fmt.Errorf("-connect: not the URL of a page, as http://127.0.0.1:7030/ is: %q", page)
		}
		at.Scheme, at.Path = scheme, "/ws"
		to = append(to, at.String())
	}
	return to, nil
}

// run keeps c connected until typed is closed and all of it said, or ctx ends.
func (c *client) run(ctx context.Context, s *websocket.Server, to []string, typed <-chan string) error {
	const least, most = 250 * time.Millisecond, 8 * time.Second
	wait, told := least, make([]string, len(to))
	for next := 0; ctx.Err() == nil; next++ {
		conn, err := s.Dial(ctx, to[next%len(to)], nil)
		if err == nil {
			done, err := c.talk(ctx, conn, &typed)
			if done || err != nil {
				return err
			}
			if c.joined {
				wait = least
			}
			fmt.Fprintln(c.out, "* the connection is lost")
			clear(told)
		} else if i, why := next%len(to), cause(err); why != told[i] && ctx.Err() == nil {
			told[i] = why // once, however often it is tried
			fmt.Fprintf(c.out, "* cannot connect to %s, trying again: %s\n", to[i], why)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, most)
	}
	return nil
}

// cause is err without addresses, which have another port each time.
func cause(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return err.Error()
}

// talk uses one connection until it ends. done says that there is nothing left to do. typed is set
// to nil when it was closed.
func (c *client) talk(ctx context.Context, conn *websocket.Conn, typed *<-chan string) (done bool, err error) {
	c.conn, c.joined, c.sent = conn, false, 0
	events := conn.Events()
	c.send(&request{T: "hello", Token: c.token, Name: c.name, Room: c.room, Epoch: c.epoch, Last: c.last})
	for {
		if *typed == nil && c.joined && len(c.unsaid) == 0 && !done {
			done = true
			conn.Close(websocket.Normal, "")
		}
		from := *typed
		if len(c.unsaid) >= inFlight {
			from = nil
		}
		select {
		case ev, ok := <-events:
			switch ev := ev.(type) {
			case websocket.Text:
				if err = c.take(ev.Data); err != nil {
					conn.Close(websocket.Normal, "")
				}
			case websocket.Writable:
				c.flush()
			case websocket.Closed:
				if ev.By == websocket.Peer && ev.Code == websocket.PolicyViolation {
					err = errRefused(ev.Reason)
				}
			}
			if !ok {
				return done, err
			}
		case text, ok := <-from:
			if !ok {
				*typed = nil
			} else if text != "" {
				c.n++
				c.unsaid = append(c.unsaid, request{T: "say", N: c.n, Text: text})
				c.flush()
			}
		case <-c.pace:
			c.flush()
		case <-ctx.Done():
			conn.Close(websocket.Normal, "")
			ctx, done = context.WithoutCancel(ctx), true
		}
	}
}

func (c *client) send(q *request) error { return c.conn.TryWriteText(mustJSON(q)) }

// flush sends the lines that are not on their way. At Writable the rest follows; what a connection
// that ends has not carried is for the next one.
func (c *client) flush() {
	now := time.Now()
	c.tokens = min(inFlight, c.tokens+float64(now.Sub(c.filled))/float64(lineEvery))
	for c.filled = now; c.joined && c.sent < len(c.unsaid); c.sent++ {
		if c.tokens < 1 {
			c.pace = time.After(lineEvery)
			return
		}
		if errors.Is(c.send(&c.unsaid[c.sent]), tcpio.ErrWouldBlock) {
			return
		}
		c.tokens--
	}
}

// said forgets the lines up to n, which the server has.
func (c *client) said(n uint64) {
	for len(c.unsaid) > 0 && c.unsaid[0].N <= n {
		c.unsaid = c.unsaid[1:]
		c.sent = max(c.sent-1, 0)
	}
}

// take handles a message of the server.
func (c *client) take(p []byte) error {
	var a answer
	if err := json.Unmarshal(p, &a); err != nil {
		return err
	}
	switch a.T {
	case "welcome":
		if c.epoch != a.Epoch {
			c.last = 0
		}
		if a.Missed < 0 {
			fmt.Fprintln(c.out, "* the room is a new one: lines may be missing here")
		} else if a.Missed > 0 {
			fmt.Fprintf(c.out, "* %d lines are missing here\n", a.Missed)
		}
		if c.told = a.Count > 0; c.told { // otherwise a here follows
			fmt.Fprintf(c.out, "* %d in %s: %s\n", a.Count, a.Room, strings.Join(a.Here, " "))
		}
		c.epoch, c.joined = a.Epoch, true
		c.said(a.N)
		c.flush()
	case "gap":
		if a.Missed < 0 {
			fmt.Fprintln(c.out, "* lines may be missing here")
		} else {
			fmt.Fprintf(c.out, "* %d lines are missing here\n", a.Missed)
		}
	case "here":
		if !c.told {
			c.told = true
			fmt.Fprintf(c.out, "* %d in %s: %s\n", a.Count, c.room, strings.Join(a.Here, " "))
		}
	case "lines":
		for _, l := range a.Lines {
			if l.Seq > c.last {
				c.last = l.Seq
				if l.Gap {
					fmt.Fprintln(c.out, "* lines are missing here")
				}
				c.show(&l)
			}
		}
	case "ack":
		c.said(a.N)
	case "no":
		fmt.Fprintln(c.out, "*", a.Why)
		if a.Field != "" && !c.joined {
			return errRefused(a.Why)
		}
		c.said(a.N)
	}
	return nil
}

func (c *client) show(l *line) {
	at := time.UnixMilli(l.At).Format("15:04")
	switch l.Kind {
	case "came":
		fmt.Fprintf(c.out, "%s * %s came\n", at, l.Name)
	case "left":
		fmt.Fprintf(c.out, "%s * %s %s\n", at, l.Name, l.Text)
	case "named":
		fmt.Fprintf(c.out, "%s * %s is now %s\n", at, l.Name, l.Text)
	default:
		fmt.Fprintf(c.out, "%s %s: %s\n", at, l.Name, l.Text)
	}
	if l.By != "" && l.By == publicID(c.token) {
		c.said(l.N)
	}
}
