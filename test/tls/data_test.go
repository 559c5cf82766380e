//go:build linux

package tls_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// What crypto/tls has decrypted and the user has not read is announced, although the socket has no
// more edges.
func TestTLSSmallReadsKeepBeingAnnounced(t *testing.T) {
	var got bytes.Buffer
	done := make(chan struct{})
	want := testnet.Pattern(40000)
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		if r, ok := ev.(tcpio.Readable); ok {
			var p [7]byte
			n, err := r.Conn.TryRead(p[:]) // one read for each Readable
			if err != nil {
				return nil
			}
			if got.Write(p[:n]); got.Len() == len(want) {
				close(done)
			}
		}
		return nil
	})
	c := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Send(t, c, want)
	testnet.Await(t, "the last byte", done)
	if !bytes.Equal(got.Bytes(), want) {
		t.Error("other bytes arrived")
	}
}

// A Write larger than WriteBuffer ends also while the socket takes everything: there is no edge to
// wait for then.
func TestTLSWriteBeyondWriteBufferDoesNotHang(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{WriteBuffer: 1000}, func(ev tcpio.Event) error {
		if o, ok := ev.(tcpio.Opened); ok {
			_ = o.Conn.SetWriteDeadline(time.Now().Add(testnet.Limit))
			if n, err := o.Conn.Write(testnet.Pattern(50000)); err != nil {
				t.Errorf("Write took %d bytes: %v", n, err)
			}
		}
		return nil
	})
	testnet.ExpectBytes(t, testnet.DialTLS(t, l, testnet.ClientTLS()), testnet.Pattern(50000))
}

// The limit on the queue holds for large writes also when tiny ones, of which a record is many
// times the size, went before them for as long as anything was queued.
func TestTLSQueueIsCountedWhateverWentBefore(t *testing.T) {
	const buffer = 16 << 10
	// A unix socket's buffer is small, and has no window that opens slowly.
	l, events := harness.Manual(t, tcpio.ListenerOptions{
		Network: "unix", Addr: filepath.Join(t.TempDir(), "s"), WriteBuffer: buffer, TLSConfig: testnet.ServerTLS(),
	})
	raw := testnet.Dial(t, l)
	c := tls.Client(raw, testnet.ClientTLS())
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	sc := harness.Expect[tcpio.Opened](t, events).Conn
	testnet.ShrinkSendBuffer(t, sc)
	taken, read := 0, 0
	try := func(size int) bool {
		n, err := sc.TryWrite(make([]byte, size))
		if err != nil && !errors.Is(err, tcpio.ErrWouldBlock) {
			t.Fatal(err)
		}
		taken += n
		return err == nil
	}
	take := func(n int) {
		if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		read += n
	}
	for range 10 {
		for sc.Buffered() < 2000 && try(1) {
		}
		take((taken - read) * 3 / 4)
	}
	for try(1000) {
	}
	if left := taken - read; left > 2*buffer { // what the kernel holds is little beside this
		t.Errorf("%d bytes wait at a limit of %d", left, buffer)
	}
	if q := sc.Buffered(); q > buffer {
		t.Errorf("%d bytes are queued at the limit of %d", q, buffer)
	}
	sc.Close()
	rest, err := io.ReadAll(c)
	if read += len(rest); err != nil || read != taken {
		t.Errorf("%d bytes of %d came, %v", read, taken, err)
	}
}

// A reset is reported once, as it is without TLS.
func TestTLSResetIsToldOnce(t *testing.T) {
	l, ended := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	raw := testnet.Dial(t, l)
	c := tls.Client(raw, testnet.ClientTLS())
	testnet.Ping(t, c, "x")
	testnet.RST(t, raw)
	err := testnet.Await(t, "Closed", ended).Err()
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" || strings.Count(err.Error(), "->") != 1 {
		t.Errorf("Err is %v", err)
	}
}

// Hijack says at once that it cannot, whatever is queued and before the handshake.
func TestTLSHijackIsRefused(t *testing.T) {
	refused := make(chan error, 1)
	l := harness.Serve(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS(), NewActor: func(c *tcpio.Conn) tcpio.Actor {
		_, err := c.Hijack()
		refused <- err
		return tcpio.ActorFunc(harness.EchoActor)
	}})
	raw := testnet.Dial(t, l)
	if err := testnet.Await(t, "Hijack", refused); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("Hijack says %v", err)
	}
	c := tls.Client(raw, testnet.ClientTLS())
	testnet.Ping(t, c, "x")
}

// A peer that has said close_notify still gets its answer, and ours behind it.
func TestTLSHalfClose(t *testing.T) {
	l, ended := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		r, ok := ev.(tcpio.Readable)
		if !ok || r.Conn.Data() != nil {
			return nil
		}
		for {
			_, err := r.Conn.TryRead(make([]byte, 100))
			switch {
			case errors.Is(err, io.EOF):
				r.Conn.SetData("seen") // a stale Readable shows the end again
				go func() {
					if _, err := r.Conn.Write([]byte("answer")); err != nil {
						t.Error(err)
					}
					if err := r.Conn.CloseWrite(); err != nil {
						t.Error(err)
					}
					if _, err := r.Conn.TryWrite([]byte("more")); !errors.Is(err, syscall.EPIPE) {
						t.Errorf("a write behind CloseWrite: %v", err)
					}
					r.Conn.Close()
				}()
				return nil
			case err != nil:
				return nil
			}
		}
	})
	c := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.Send(t, c, "question")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "answer" {
		t.Errorf("%q, %v", got, err)
	}
	c.Close()
	if err := testnet.Await(t, "Closed", ended).Err(); err != nil {
		t.Errorf("Err is %v", err)
	}
}

// io.Copy from a file, and between a plain connection and one with TLS, encrypts.
func TestTLSCopies(t *testing.T) {
	want := testnet.Pattern(300000)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) error {
		if o, ok := ev.(tcpio.Opened); ok {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			if n, err := io.Copy(o.Conn, f); n != int64(len(want)) || err != nil {
				t.Errorf("copied %d, %v", n, err)
			}
			o.Conn.Close()
		}
		return nil
	})
	if got, err := io.ReadAll(testnet.DialTLS(t, l, testnet.ClientTLS())); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	proxy := harness.Serve(t, tcpio.ListenerOptions{NewActor: func(*tcpio.Conn) tcpio.Actor {
		return tcpio.ActorFunc(func(ev tcpio.Event) error {
			if o, ok := ev.(tcpio.Opened); ok {
				from, err := tls.Dial("tcp", l.Addr().String(), testnet.ClientTLS())
				if err != nil {
					return err
				}
				defer from.Close()
				_, err = io.Copy(o.Conn, from)
				o.Conn.Close()
				return err
			}
			return nil
		})
	}})
	if got, err := io.ReadAll(testnet.Dial(t, proxy)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// With DeferAccept a connection is handed out when the first bytes of the user's have arrived, not
// those of the handshake, also when they came together with its end.
func TestTLSDeferAcceptWaitsForTheUsersBytes(t *testing.T) {
	l := harness.Listen(t, tcpio.ListenerOptions{TLSConfig: testnet.ServerTLS(), DeferAccept: true})
	ln := l.NetListener()
	served := harness.Go(t.Context(), l)
	accepted := make(chan net.Conn, 10)
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	defer func() {
		l.Close()
		for range accepted {
		}
		if err := testnet.Await(t, "the end of Serve", served); err != nil {
			t.Error(err)
		}
	}()
	quiet := testnet.DialTLS(t, l, testnet.ClientTLS())
	testnet.WaitFor(t, "the handshake", func() bool {
		for sc := range l.Conns() {
			return sc.TLS() != nil
		}
		return false
	})
	for i := range 10 {
		// The Finished message and the data in one segment, or in two.
		held := &corked{Conn: testnet.Dial(t, l), off: i%2 == 1}
		c := tls.Client(held, testnet.ClientTLS())
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		held.off = true
		testnet.Send(t, c, "data")
		sc := testnet.Await(t, "Accept", accepted)
		if sc.RemoteAddr().String() != c.LocalAddr().String() {
			t.Fatal("a connection was handed out whose client has said nothing")
		}
		testnet.ExpectBytes(t, sc, "data")
		sc.Close()
	}
	testnet.Send(t, quiet, "late")
	sc := testnet.Await(t, "Accept", accepted)
	testnet.ExpectBytes(t, sc, "late")
	sc.Close()
}

// corked keeps what is written behind the first write until it is off.
type corked struct {
	net.Conn
	off   bool
	first bool
	kept  []byte
}

func (c *corked) Write(p []byte) (int, error) {
	if !c.first || c.off {
		c.first = true
		_, err := c.Conn.Write(append(c.kept, p...))
		c.kept = nil
		return len(p), err
	}
	c.kept = append(c.kept, p...)
	return len(p), nil
}

// A connection that is adopted begins with its handshake too.
func TestTLSOfAnAdoptedConnection(t *testing.T) {
	l, _ := harness.TLS(t, tcpio.ListenerOptions{}, harness.EchoActor)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	testnet.WaitFor(t, "Adopt", func() bool { _, err := l.Adopt(nc); return err == nil })
	testnet.Ping(t, tls.Client(raw, testnet.ClientTLS()), "x")
}

// tlsPipe is pipe with TLS in between: the client's end is a net.Pipe, since a tls.Conn itself does
// not survive deadlines.
func tlsPipe(t *testing.T) nettest.MakePipe {
	return func() (c1, c2 net.Conn, stop func(), err error) {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{Addr: "127.0.0.1:0", TLSConfig: testnet.ServerTLS(), WriteBuffer: 64 << 10})
		if err != nil {
			return nil, nil, nil, err
		}
		ln := l.NetListener()
		served := harness.Go(context.Background(), l)
		client, err := tls.Dial("tcp", l.Addr().String(), testnet.ClientTLS())
		if err != nil {
			return nil, nil, nil, err
		}
		if c1, err = ln.Accept(); err != nil {
			return nil, nil, nil, err
		}
		c2, inner := net.Pipe()
		var copies sync.WaitGroup
		copies.Go(func() {
			_, _ = io.Copy(client, inner)
			_ = client.CloseWrite()
		})
		copies.Go(func() {
			_, _ = io.Copy(inner, client)
			inner.Close()
		})
		return c1, c2, func() {
			c1.Close()
			c2.Close()
			client.NetConn().Close()
			copies.Wait()
			l.Close()
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		}, nil
	}
}

func TestTLSConnIsANetConn(t *testing.T) {
	nettest.TestConn(t, tlsPipe(t))
	t.Run("peer", func(t *testing.T) { nettest.TestConn(t, testnet.Swapped(tlsPipe(t))) })
}
