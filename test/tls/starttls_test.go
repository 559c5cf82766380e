//go:build linux

package tls_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// A headConn sends head in one segment with the beginning of what is written first, and the rest of
// that behind it.
type headConn struct {
	net.Conn
	head  string
	after int // bytes of the first write that go with head; negative: all
}

func (c *headConn) Write(p []byte) (int, error) {
	if c.head == "" {
		return c.Conn.Write(p)
	}
	first := len(p)
	if c.after >= 0 {
		first = min(c.after, len(p))
	}
	if _, err := c.Conn.Write(append([]byte(c.head), p[:first]...)); err != nil {
		return 0, err
	}
	c.head = ""
	if first < len(p) {
		if _, err := c.Conn.Write(p[first:]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// To see it fail: leave out startLocked in StartTLS.
func TestStartTLSTakesAHandshakeThatCameWithTheHeader(t *testing.T) {
	const header = "PROXY TCP4 192.0.2.1 192.0.2.2 1111 443\r\n"
	handle := map[string]func(c *tcpio.Conn) error{
		// The loop over Frames ends at the header.
		"break": func(c *tcpio.Conn) error {
			for line, err := range c.Frames(bufio.ScanLines) {
				if err != nil {
					return err
				}
				if c.TLS() == nil {
					if string(line)+"\r\n" != header {
						t.Errorf("the header is %q", line)
					}
					if err := c.StartTLS(testnet.ServerTLS()); err != nil {
						t.Error(err)
					}
					break
				}
				if _, err := c.Write(append(bytes.Clone(line), '\n')); err != nil {
					return err
				}
			}
			return nil
		},
		// It goes on, and its next frames come out of TLS.
		"go on": func(c *tcpio.Conn) error {
			for line, err := range c.Frames(bufio.ScanLines) {
				switch {
				case err != nil:
					return err
				case c.TLS() == nil:
					before := string(line)
					if err := c.StartTLS(testnet.ServerTLS()); err != nil {
						t.Error(err)
					}
					if string(line) != before {
						t.Errorf("StartTLS changed the frame %q to %q", before, line)
					}
					continue
				}
				if _, err := c.Write(append(bytes.Clone(line), '\n')); err != nil {
					return err
				}
			}
			return nil
		},
	}
	for name, f := range handle {
		for _, after := range []int{-1, 0, 1, 5, 6, 100} {
			t.Run(name, func(t *testing.T) {
				l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
					if r, ok := ev.(tcpio.Readable); ok {
						return f(r.Conn)
					}
					return nil
				}))
				c := tls.Client(&headConn{testnet.Dial(t, l), header, after}, testnet.ClientTLS())
				for range 3 {
					testnet.Ping(t, c, "hello\n")
				}
			})
		}
	}
}

func TestStartTLSOnTheStreamTakesAHandshakeThatCameWithTheCommand(t *testing.T) {
	l := harness.Stream(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) {
		r, ok := ev.(tcpio.Readable)
		if !ok {
			return
		}
		for line, err := range r.Conn.Frames(bufio.ScanLines) {
			if err != nil {
				r.Conn.Close()
				return
			}
			if string(line) == "STARTTLS" {
				if err := r.Conn.StartTLS(testnet.ServerTLS()); err != nil {
					t.Error(err)
				}
				return
			}
			_, _ = r.Conn.TryWrite(append(bytes.Clone(line), '\n'))
		}
	})
	c := tls.Client(&headConn{testnet.Dial(t, l), "STARTTLS\n", -1}, testnet.ClientTLS())
	testnet.Ping(t, c, "hello\n")
	c.Close()
}

// What was injected in plain text behind the command, before a handshake or without one, is never
// handed out.
func TestPlainTextBehindStartTLSIsNeverHandedOut(t *testing.T) {
	for _, injected := range []string{"INJECTED\n", "\x16", "\x16\x03\x01\x00\x09INJECTED\n", strings.Repeat("INJECTED\n", 5000)} {
		ended := make(chan error, 1)
		l := harness.Actor(t, tcpio.ListenerOptions{}, tcpio.ActorFunc(func(ev tcpio.Event) error {
			switch ev := ev.(type) {
			case tcpio.Readable:
				for line, err := range ev.Conn.Frames(bufio.ScanLines) {
					if err != nil {
						return err
					}
					if string(line) != "STARTTLS" {
						t.Errorf("handed out: %q", line)
						continue
					}
					if err := ev.Conn.StartTLS(testnet.ServerTLS()); err != nil {
						t.Error(err)
					}
				}
			case tcpio.Closed:
				ended <- ev.Conn.Err()
			}
			return nil
		}))
		raw := testnet.Dial(t, l)
		c := tls.Client(&headConn{raw, "STARTTLS\n" + injected, -1}, testnet.ClientTLS())
		if err := c.Handshake(); err == nil {
			t.Errorf("behind %.20q the handshake succeeded", injected)
		}
		raw.Close()
		if err := testnet.Receive(t, "the end", ended); err == nil {
			t.Errorf("behind %.20q Err is nil", injected)
		}
	}
}

// It says at once what no handshake could mend, and takes nothing.
func TestStartTLSWithoutACertificateFails(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	for _, config := range []*tls.Config{nil, {}, {ServerName: "localhost"}} {
		err := c.StartTLS(config)
		if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Op != "starttls" || !strings.Contains(err.Error(), "the config ") {
			t.Errorf("%v", err)
		}
	}
	testnet.Send(t, peer, "plain")
	if got, err := harness.ReadStream(t, events, c, 5, 100); string(got) != "plain" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStartTLSThatWouldDropBytesFailsAndTakesNothing(t *testing.T) {
	t.Run("too many", func(t *testing.T) {
		const size = 100 << 10
		l, events := harness.Manual(t, tcpio.ListenerOptions{MaxFrame: 1 << 20})
		c, peer := harness.Open(t, l, events)
		p := testnet.Pattern(size)
		go func() { _, _ = peer.Write(p) }()
		// Frames keeps what is no whole frame yet.
		more := func(data []byte, _ bool) (int, []byte, error) { return 0, nil, nil }
		seen := 0
		for seen < size {
			harness.Expect[tcpio.Readable](t, events)
			for _, err := range c.Frames(func(data []byte, atEOF bool) (int, []byte, error) {
				seen = len(data)
				return more(data, atEOF)
			}) {
				t.Fatal(err)
			}
		}
		if err := c.StartTLS(testnet.ServerTLS()); err == nil {
			t.Fatal("StartTLS took 100 KiB")
		}
		got := make([]byte, size+1)
		if n, err := c.TryRead(got); err != nil || !bytes.Equal(got[:n], p) {
			t.Errorf("%d bytes are left of %d, %v", n, size, err)
		}
	})
	t.Run("in split", func(t *testing.T) {
		l, events := harness.Manual(t, tcpio.ListenerOptions{})
		c, peer := harness.Open(t, l, events)
		testnet.Send(t, peer, "hello")
		harness.Expect[tcpio.Readable](t, events)
		for frame, err := range c.Frames(func(data []byte, _ bool) (int, []byte, error) {
			if len(data) == 0 {
				return 0, nil, nil
			}
			if err := c.StartTLS(testnet.ServerTLS()); err == nil || errors.Is(err, net.ErrClosed) {
				t.Errorf("StartTLS while split runs: %v", err)
			}
			return len(data), data, nil
		}) {
			if err != nil || string(frame) != "hello" {
				t.Errorf("%q, %v", frame, err)
			}
		}
	})
}

func TestStartTLSUpgradesAPlainConnection(t *testing.T) {
	var opts tcpio.ListenerOptions
	upgraded := make(chan error, 1)
	opts.NewActor = func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			r, ok := ev.(tcpio.Readable)
			if !ok {
				return nil
			}
			for line, err := range r.Conn.Frames(bufio.ScanLines) {
				if err != nil {
					return nil
				}
				if string(line) != "STARTTLS" {
					_, _ = fmt.Fprintf(r.Conn, "%s, secure %v\n", line, r.Conn.TLS() != nil)
					continue
				}
				if _, err := r.Conn.TryWrite([]byte("go ahead\n")); err != nil {
					return err
				}
				err := r.Conn.StartTLS(testnet.ServerTLS())
				if err == nil { // the client's part begins behind upgraded
					if _, err := r.Conn.TryWrite([]byte("x")); !errors.Is(err, tcpio.ErrWouldBlock) && !errors.Is(err, net.ErrClosed) { // of what was injected
						t.Errorf("a write within the handshake: %v", err)
					}
				}
				if upgraded <- err; err == nil {
					return nil
				}
			}
			return nil
		})
	}
	l := harness.Serve(t, opts)
	raw := testnet.Dial(t, l)
	r := bufio.NewReader(raw)
	expect := func(r *bufio.Reader, want string) {
		t.Helper()
		if line, err := r.ReadString('\n'); err != nil || line != want {
			t.Fatalf("got %q, %v; want %q", line, err, want)
		}
	}
	_, _ = io.WriteString(raw, "hello\n")
	expect(r, "hello, secure false\n")
	_, _ = io.WriteString(raw, "STARTTLS\n")
	expect(r, "go ahead\n")
	if err := testnet.Receive(t, "StartTLS", upgraded); err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, testnet.ClientTLS())
	if _, err := io.WriteString(c, "again\n"); err != nil {
		t.Fatal(err)
	}
	expect(bufio.NewReader(c), "again, secure true\n")

	// A command that came with STARTTLS is not taken for one that came encrypted.
	raw = testnet.Dial(t, l)
	_, _ = io.WriteString(raw, "STARTTLS\nINJECTED\n")
	r = bufio.NewReader(raw)
	expect(r, "go ahead\n")
	if err := testnet.Receive(t, "StartTLS", upgraded); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(r); err != nil || bytes.Contains(rest, []byte("INJECTED")) {
		t.Errorf("behind an injected command the client got %q, %v; want an alert and the end", rest, err)
	}
}

// What StartTLS finds queued, in plain text, stays in the count.
func TestStartTLSCountsWhatIsQueued(t *testing.T) {
	const size = 4 << 20
	conns := make(chan *tcpio.Conn, 1)
	l := harness.Serve(t, tcpio.ListenerOptions{NewActor: func(c *tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if _, ok := ev.(tcpio.Opened); ok {
				testnet.ShrinkSendBuffer(t, c)
				if _, err := c.TryWrite(make([]byte, size)); err != nil {
					return err
				}
				if err := c.StartTLS(testnet.ServerTLS()); err != nil {
					return err
				}
				conns <- c
			}
			return nil
		})
	}})
	raw := testnet.Dial(t, l)
	sc := testnet.Await(t, "StartTLS", conns)
	_, _ = raw.Write(testnet.ClientHello()) // its answer waits behind the plain text
	looks := 0
	testnet.WaitFor(t, "the ClientHello", func() bool {
		if n := sc.Buffered(); n < size/2 { // the kernel has the rest
			t.Fatalf("%d bytes of %d are queued", n, size)
		}
		looks++
		return looks > 50 && l.Stats().BytesIn > 0
	})
}

// A connection that was handed out as a net.Conn gets its first route while StartTLS waits for the
// client. To see it fail: have moveLocked emit Opened only when no handshake is under way.
func TestTheFirstRouteDuringStartTLSBeginsWithOpened(t *testing.T) {
	for name, route := range map[string]func(*tcpio.Conn, chan<- tcpio.Event){
		"actor": func(c *tcpio.Conn, events chan<- tcpio.Event) {
			_ = c.Attach(tcpio.ActorFunc(func(ev tcpio.Event) error { events <- ev; return nil }))
		},
		"claimed": func(c *tcpio.Conn, events chan<- tcpio.Event) {
			own := c.Events()
			go func() {
				for ev := range own {
					events <- ev
				}
			}()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := harness.Listen(t, tcpio.ListenerOptions{})
			nl := l.NetListener()
			harness.Start(t, l)
			peer := testnet.Dial(t, l)
			nc, err := nl.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c := nc.(*tcpio.Conn)
			if err := c.StartTLS(testnet.ServerTLS()); err != nil {
				t.Fatal(err)
			}
			events := make(chan tcpio.Event, 8)
			route(c, events)
			client := tls.Client(peer, testnet.ClientTLS())
			if err := client.Handshake(); err != nil {
				t.Fatal(err)
			}
			harness.Expect[tcpio.Opened](t, events)
			harness.Expect[tcpio.Readable](t, events) // the handshake is done
			c.Abort()
			harness.Expect[tcpio.Closed](t, events)
		})
	}
}

// The Readable that says that the handshake is done comes even when a read behind it has found
// nothing: whoever speaks first waits for it.
func TestTheEndOfAnUpgradeIsToldWhateverIsRead(t *testing.T) {
	reads := map[string]func(*tcpio.Conn){
		"TryRead": func(c *tcpio.Conn) {
			if n, err := c.TryRead(make([]byte, 1)); n != 0 || err != tcpio.ErrWouldBlock {
				t.Errorf("TryRead returned %d, %v", n, err)
			}
		},
		"Frames": func(c *tcpio.Conn) {
			for frame, err := range c.Frames(bufio.ScanLines) {
				t.Errorf("%q, %v", frame, err)
			}
		},
	}
	for name, read := range reads {
		for _, client := range []bool{false, true} {
			for _, route := range harness.Routes {
				t.Run(fmt.Sprintf("%s, client=%v, %s", name, client, route), func(t *testing.T) {
					l, _, _ := harness.Route(t, route, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
						switch ev := ev.(type) {
						case tcpio.Opened:
							start, config := ev.Conn.StartTLS, testnet.ServerTLS()
							if client {
								start, config = ev.Conn.StartTLSClient, testnet.ClientTLS()
							}
							if err := start(config); err != nil {
								t.Error(err)
							}
							testnet.WaitFor(t, "the handshake is done", func() bool { return ev.Conn.TLS() != nil })
							read(ev.Conn)
						case tcpio.Readable:
							if ev.Conn.TLS() != nil {
								_, _ = ev.Conn.TryWrite([]byte("hello"))
							}
						}
						return nil
					})
					raw := testnet.Dial(t, l)
					peer := tls.Client(raw, testnet.ClientTLS())
					if client {
						peer = tls.Server(raw, testnet.ServerTLS())
					}
					testnet.ExpectBytes(t, peer, "hello")
				})
			}
		}
	}
}
