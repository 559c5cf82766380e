//go:build linux

package tls_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// endedBy fails the test unless the next connection that ended was ended by the named limit.
func endedBy(t *testing.T, ended <-chan *tcpio.Conn, want string) {
	t.Helper()
	var limit *tcpio.TimeoutError
	if err := testnet.Await(t, "Closed", ended).Err(); !errors.As(err, &limit) || limit.Kind.String() != want {
		t.Errorf("Err is %v, want the %s limit", err, want)
	}
}

// repeat calls f in an interval until it fails, which it does when its connection has been closed.
func repeat(t *testing.T, interval time.Duration, f func() error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for f() == nil {
			time.Sleep(interval)
		}
	}()
	t.Cleanup(func() { <-done })
}

// Neither a byte of a record, nor records without data, nor key updates are what ReadStallTimeout
// waits for, and none of them is activity to IdleTimeout, however often they come.
func TestTLSLimitsCountPlainText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		send func(w *recordWriter, i int) []byte
	}{
		{"a record byte by byte", func() func(*recordWriter, int) []byte {
			var rec []byte
			return func(w *recordWriter, i int) []byte {
				if rec == nil {
					rec = w.record(recData, make([]byte, 16000))
				}
				return rec[i : i+1]
			}
		}()},
		{"records without data", func(w *recordWriter, i int) []byte {
			if i >= 16 {
				return nil // crypto/tls takes no more
			}
			return w.record(recData, nil)
		}},
		{"key updates", func(w *recordWriter, i int) []byte {
			if i >= 16 {
				return nil
			}
			return w.keyUpdate(1, 1)
		}},
	} {
		for _, limit := range []string{"read", "idle"} {
			for _, route := range []string{"actor", "nobody reads"} {
				t.Run(tt.name+", "+limit+", "+route, func(t *testing.T) {
					opts := tcpio.ListenerOptions{CloseTimeout: 20 * time.Millisecond}
					const after = 500 * time.Millisecond
					if limit == "read" {
						opts.ReadStallTimeout = after
					} else {
						opts.IdleTimeout = after
					}
					l, ended := harness.TLS(t, opts, func(ev tcpio.Event) error {
						if route == "actor" {
							return harness.EchoActor(ev)
						}
						return nil
					})
					w, _ := dialRecords(t, l)
					var sent atomic.Int64
					repeat(t, 300*time.Millisecond, func() error {
						b := tt.send(w, int(sent.Load()))
						if b == nil {
							return net.ErrClosed
						}
						sent.Add(1)
						_, err := w.raw.Write(b)
						return err
					})
					endedBy(t, ended, limit)
					if n := sent.Load(); n >= 16 { // which took 4.8 s
						t.Errorf("the limit of %v came behind %d writes", after, n)
					}
					w.raw.Close()
				})
			}
		}
	}
}

// Data that waits for its reader holds ReadStallTimeout up, and is activity to IdleTimeout once;
// nothing of it is lost.
func TestTLSPlainTextThatWaitsHoldsUpReadStallTimeout(t *testing.T) {
	conns := make(chan *tcpio.Conn, 1)
	l, ended := harness.TLS(t, tcpio.ListenerOptions{ReadStallTimeout: 3 * time.Second, CloseTimeout: 20 * time.Millisecond},
		func(ev tcpio.Event) error {
			if o, ok := ev.(tcpio.Opened); ok {
				conns <- o.Conn
			}
			return nil
		})
	c := tls.Client(testnet.Dial(t, l), testnet.ClientTLS())
	want := testnet.Pattern(50000)
	testnet.Send(t, c, want) // right behind the handshake, or the limit may be over
	sc := testnet.Await(t, "Opened", conns)
	quiet := testnet.DialTLS(t, l, testnet.ClientTLS()) // whose limit passes later
	endedBy(t, ended, "read")
	quiet.Close()
	testnet.ExpectBytes(t, sc, want)
	c.Close()
}

func TestTLSUnreadPlainTextDoesNotKeepAnIdleConnection(t *testing.T) {
	l, ended := harness.TLS(t, tcpio.ListenerOptions{IdleTimeout: 500 * time.Millisecond, CloseTimeout: 20 * time.Millisecond},
		func(tcpio.Event) error { return nil })
	c := testnet.DialTLS(t, l, testnet.ClientTLS())
	if _, err := c.Write(testnet.Pattern(50000)); err != nil && !testnet.Benign(err) { // it comes too late if this was held up
		t.Fatal(err)
	}
	endedBy(t, ended, "idle")
}

// Within its handshake a connection has HandshakeTimeout alone; the other limits begin behind it.
func TestTLSLimitsBeginBehindTheHandshake(t *testing.T) {
	const after = 500 * time.Millisecond
	for _, limit := range []string{"read", "idle"} {
		t.Run(limit, func(t *testing.T) {
			cert := testnet.ServerTLS().Certificates[0]
			within := make(chan time.Time, 1)
			opts := tcpio.ListenerOptions{CloseTimeout: 20 * time.Millisecond}
			opts.TLSConfig = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				time.Sleep(after + 200*time.Millisecond)
				within <- time.Now()
				return &cert, nil
			}}
			if limit == "read" {
				opts.ReadStallTimeout = after
			} else {
				opts.IdleTimeout = after
			}
			opened := make(chan struct{}, 1)
			l, ended := harness.TLS(t, opts, func(ev tcpio.Event) error {
				if _, ok := ev.(tcpio.Opened); ok {
					opened <- struct{}{}
				}
				return nil
			})
			testnet.DialTLS(t, l, testnet.ClientTLS())
			testnet.Await(t, "Opened", opened)
			endedBy(t, ended, limit)
			if d := time.Since(testnet.Await(t, "GetCertificate", within)); d < after/2 { // the clock is coarse
				t.Errorf("the limit of %v ended the connection %v behind its handshake", after, d)
			}
		})
	}
}

// Urgent data is no byte that anybody can read, and no activity.
func TestLimitsDoNotCountUrgentData(t *testing.T) {
	for _, limit := range []string{"read", "idle"} {
		t.Run(limit, func(t *testing.T) {
			opts := tcpio.ListenerOptions{CloseTimeout: 20 * time.Millisecond}
			if limit == "read" {
				opts.ReadStallTimeout = 60 * time.Millisecond
			} else {
				opts.IdleTimeout = 60 * time.Millisecond
			}
			ended := make(chan *tcpio.Conn, 1)
			opts.NewActor = func(*tcpio.Conn) tcpio.Actor {
				return tcpio.ActorFunc(func(ev tcpio.Event) error {
					if c, ok := ev.(tcpio.Closed); ok {
						ended <- c.Conn
					}
					return harness.EchoActor(ev)
				})
			}
			l := harness.Serve(t, opts)
			c := testnet.Dial(t, l)
			rc, err := c.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			repeat(t, 5*time.Millisecond, func() (err error) {
				if cerr := rc.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB|unix.MSG_NOSIGNAL, nil) }); cerr != nil {
					return cerr
				}
				return err
			})
			endedBy(t, ended, limit)
			c.Close()
		})
	}
}

// A frame that Frames has begun is complete in time when its rest has arrived, read or not; bytes
// that are no plain text do not complete it.
func TestTLSReadStallTimeoutOfAFrame(t *testing.T) {
	frames := make(chan string, 10)
	l, ended := harness.TLS(t, tcpio.ListenerOptions{ReadStallTimeout: 3 * time.Second, CloseTimeout: 20 * time.Millisecond},
		func(ev tcpio.Event) error {
			if r, ok := ev.(tcpio.Readable); ok {
				for line, err := range r.Conn.Frames(bufio.ScanLines) {
					if err != nil {
						return nil
					}
					frames <- string(line)
				}
			}
			return nil
		})
	w, _ := dialRecords(t, l)
	w.send(w.record(recData, []byte("first\nbeg")))
	if got := testnet.Await(t, "a frame", frames); got != "first" {
		t.Errorf("got %q", got)
	}
	w.send(w.record(recData, nil), w.keyUpdate(1, 1), w.record(recData, []byte("in\nunfinished")))
	if got := testnet.Await(t, "a frame", frames); got != "begin" {
		t.Errorf("got %q", got)
	}
	repeat(t, time.Second, func() error { // crypto/tls takes 16 in a row
		_, err := w.raw.Write(w.keyUpdate(1, 1))
		return err
	})
	endedBy(t, ended, "read")
	w.raw.Close()
}

// ReadStallTimeout waits for the user's first byte: a handshake is none. A client that has sent one
// is left alone.
func TestTLSReadStallTimeoutCountsFromTheHandshake(t *testing.T) {
	l, ended := harness.TLS(t, tcpio.ListenerOptions{ReadStallTimeout: 2 * time.Second, CloseTimeout: 50 * time.Millisecond}, harness.EchoActor)
	talks := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Ping(t, talks, "x")
	testnet.DialTLS(t, l, testnet.ClientTLS())
	err := testnet.Await(t, "Closed", ended).Err()
	var limit *tcpio.TimeoutError
	if !errors.As(err, &limit) || limit.Kind.String() != "read" {
		t.Errorf("Err is %v", err)
	}
	testnet.Ping(t, talks, "x")
}

// IdleTimeout ends an idle connection with close_notify, and WriteStallTimeout one that reads
// nothing.
func TestTLSTimeLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		opts  tcpio.ListenerOptions
		write int
	}{
		{"idle", tcpio.ListenerOptions{IdleTimeout: 100 * time.Millisecond}, 1},
		{"write", tcpio.ListenerOptions{WriteStallTimeout: 100 * time.Millisecond}, 16 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, ended := harness.TLS(t, tt.opts, func(ev tcpio.Event) error {
				if o, ok := ev.(tcpio.Opened); ok {
					_, err := o.Conn.TryWrite(make([]byte, tt.write))
					return err
				}
				return nil
			})
			c := testnet.DialTLS(t, l, testnet.ClientTLS())
			if tt.name == "idle" {
				if got, err := io.ReadAll(c); err != nil || len(got) != tt.write {
					t.Errorf("the client read %d bytes, %v; want close_notify", len(got), err)
				}
				c.Close()
			}
			var limit *tcpio.TimeoutError
			if err := testnet.Await(t, "Closed", ended).Err(); !errors.As(err, &limit) || limit.Kind.String() != tt.name {
				t.Errorf("Err is %v", err)
			}
		})
	}
}
