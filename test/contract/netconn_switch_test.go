//go:build linux

package contract

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

func TestSwitchingBetweenReadAndReadableLosesNothing(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	sent := testnet.Pattern(4 << 20)
	go func() {
		for p := sent; len(p) > 0; {
			n := min(len(p), 1+rand.IntN(20000))
			if _, err := peer.Write(p[:n]); err != nil {
				t.Errorf("the peer's write: %v", err)
				return
			}
			p = p[n:]
		}
		_ = peer.(*net.TCPConn).CloseWrite()
	}()
	var got []byte
	buf := make([]byte, 8<<10)
	for ended := false; !ended; {
		// Either wait for the event, or block, some reads long.
		byEvent := rand.IntN(2) == 0
		for i := range 1 + rand.IntN(8) {
			var n int
			var err error
			if byEvent {
				harness.Expect[tcpio.Readable](t, events)
				n, err = c.TryRead(buf[:1+rand.IntN(len(buf))])
			} else {
				if i == 0 {
					_ = c.SetReadDeadline(time.Now().Add(testnet.Limit))
				}
				n, err = c.Read(buf[:1+rand.IntN(len(buf))])
			}
			got = append(got, buf[:n]...)
			if err == io.EOF {
				ended = true
				break
			}
			if err != nil && err != tcpio.ErrWouldBlock {
				t.Fatal(err)
			}
		}
		if byEvent {
			continue
		}
		// What Read left announces itself, now or when it arrives; an event of before is settled by
		// one ErrWouldBlock.
		select {
		case ev := <-events:
			if _, ok := ev.(tcpio.Readable); !ok {
				t.Fatalf("got %T", ev)
			}
			n, err := c.TryRead(buf)
			got = append(got, buf[:n]...)
			ended = ended || err == io.EOF
		default:
		}
	}
	if i := testnet.FirstDifference(got, sent); i >= 0 {
		t.Fatalf("byte %d of %d differs", i, len(got))
	}
}

func TestBlockedReadTakesTheWakeUp(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	for range 20 {
		read := goRead(c, make([]byte, 8))
		waitBlocked(t, 1, "(*Conn).Read")
		testnet.Send(t, peer, "x")
		if r := testnet.Await(t, "the end of Read", read); r.n != 1 || r.err != nil {
			t.Fatalf("Read = %d, %v", r.n, r.err)
		}
		if len(events) != 0 {
			t.Fatalf("and there was an event: %T", <-events)
		}
	}
	// With nobody blocked the next byte is an event again, and so is one that a reader did not live
	// to take.
	testnet.Send(t, peer, "x")
	harness.Expect[tcpio.Readable](t, events)
	if n, err := c.TryRead(make([]byte, 8)); n != 1 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	testnet.Send(t, peer, "x")
	harness.Expect[tcpio.Readable](t, events)
}

func TestBytesThatATimedOutReaderWasWokenForAreAnnounced(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	buf := make([]byte, 8)
	for range 150 {
		_ = c.SetReadDeadline(time.Time{})
		read := goRead(c, make([]byte, 8))
		waitBlocked(t, 1, "(*Conn).Read")
		testnet.Send(t, peer, "x")
		for range rand.IntN(3000) { // about as long as the wake-up takes
			runtime.KeepAlive(c)
		}
		_ = c.SetReadDeadline(time.Unix(1, 0))
		if r := testnet.Await(t, "the end of Read", read); r.err == nil {
			continue // an event of before Read began may be left: the next loop takes it, or Read settles it
		}
		for n := 0; n == 0; {
			harness.Expect[tcpio.Readable](t, events) // one that is stale costs an ErrWouldBlock
			var err error
			if n, err = c.TryRead(buf); err != nil && err != tcpio.ErrWouldBlock {
				t.Fatal(err)
			}
		}
	}
}

func TestWriteBlocksOnlyAboveWriteBuffer(t *testing.T) {
	const limit = 256 << 10
	c, peer := blockingPair(t, tcpio.ListenerOptions{WriteBuffer: limit})
	testnet.ShrinkSendBuffer(t, c)
	socket := fillSocket(t, c)
	// A peer that reads nothing: these bytes wait in the queue, and no call blocks for them.
	sent := testnet.Pattern(limit)
	for off := 0; off < limit; off += limit / 4 {
		if n, err := c.Write(sent[off : off+limit/4]); n != limit/4 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	done := make(chan outcome, 1)
	go func() {
		n, err := c.Write(sent)
		done <- outcome{n, err}
	}()
	waitBlocked(t, 1, "(*Conn).Write")
	if n := c.Buffered(); n > limit {
		t.Fatalf("%d bytes are queued, over the limit of %d", n, limit)
	}
	if n, err := c.TryWrite([]byte("x")); n != 0 || err != tcpio.ErrWouldBlock {
		t.Fatalf("TryWrite beside a blocked Write = %d, %v", n, err)
	}
	testnet.ExpectBytes(t, peer, make([]byte, socket))
	testnet.ExpectBytes(t, peer, sent)
	testnet.ExpectBytes(t, peer, sent)
	if w := testnet.Await(t, "the end of Write", done); w.n != limit || w.err != nil {
		t.Fatalf("Write = %d, %v", w.n, w.err)
	}
}

// fillSocket writes zeros until the socket refuses, and queues nothing.
func fillSocket(t *testing.T, c *tcpio.Conn) (n int) {
	t.Helper()
	zeros := make([]byte, 64<<10)
	testnet.Control(t, c, func(fd int) error {
		for {
			m, err := unix.Write(fd, zeros)
			switch err {
			case nil:
				n += m
			case unix.EINTR:
			case unix.EAGAIN:
				return nil
			default:
				return err
			}
		}
	})
	return n
}

func TestBlockingAndTryWritesDoNotInterleave(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{WriteBuffer: 32 << 10})
	testnet.ShrinkSendBuffer(t, c)
	const writers, records = 8, 12
	record := func(w, i int) []byte {
		p := testnet.Pattern(4 + 1000*(1+w*w)) // up to 50 kB, over the limit
		binary.BigEndian.PutUint16(p, uint16(w))
		binary.BigEndian.PutUint16(p[2:], uint16(i))
		return p
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range records {
				p := record(w, i)
				for {
					var n int
					var err error
					if w%2 == 0 {
						n, err = c.Write(p)
					} else if n, err = c.TryWrite(p); err == tcpio.ErrWouldBlock {
						time.Sleep(time.Millisecond) // no events here that would say when
						continue
					}
					if n != len(p) || err != nil {
						t.Errorf("a write of %d = %d, %v", len(p), n, err)
					}
					break
				}
			}
		})
	}
	next := make([]int, writers)
	for range writers * records {
		var head [4]byte
		if _, err := io.ReadFull(peer, head[:]); err != nil {
			t.Fatal(err)
		}
		w, i := int(binary.BigEndian.Uint16(head[:])), int(binary.BigEndian.Uint16(head[2:]))
		if w >= writers || i != next[w] {
			t.Fatalf("record %d of writer %d, want %v", i, w, next)
		}
		next[w]++
		testnet.ExpectBytes(t, peer, record(w, i)[4:])
	}
	wg.Wait()
}

func TestTLSRunsOverAConnOnEitherSide(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS() // for its certificate
	defer cert.Close()
	roots := x509.NewCertPool()
	roots.AddCert(cert.Certificate())
	serverSide := &tls.Config{Certificates: cert.TLS.Certificates}
	clientSide := &tls.Config{RootCAs: roots, ServerName: "example.com"}
	sent := testnet.Pattern(3 << 20)
	run := func(t *testing.T, server, client *tls.Conn) {
		testnet.Together(func() {
			if _, err := io.Copy(server, server); err != nil {
				t.Errorf("the server: %v", err)
			}
			if err := server.Close(); err != nil {
				t.Errorf("the server's Close: %v", err)
			}
		}, func() {
			if _, err := client.Write(sent); err != nil {
				t.Errorf("the client: %v", err)
			}
			if err := client.CloseWrite(); err != nil {
				t.Errorf("the client's CloseWrite: %v", err)
			}
		}, func() {
			got, err := io.ReadAll(client)
			if i := testnet.FirstDifference(got, sent); err != nil || i >= 0 {
				t.Errorf("byte %d of %d differs, %v", i, len(got), err)
			}
		})
	}
	t.Run("server", func(t *testing.T) {
		c, peer := blockingPair(t, tcpio.ListenerOptions{})
		run(t, tls.Server(c, serverSide), tls.Client(peer, clientSide))
	})
	t.Run("client", func(t *testing.T) {
		c, peer := blockingPair(t, tcpio.ListenerOptions{})
		run(t, tls.Server(peer, serverSide), tls.Client(c, clientSide))
	})
	t.Run("both", func(t *testing.T) {
		l := harness.Listen(t, tcpio.ListenerOptions{})
		ln := serveNetListener(t, l)
		c1, peer := acceptPair(t, l, ln)
		// The other end becomes a Conn of a second listener.
		l2 := harness.Listen(t, tcpio.ListenerOptions{})
		ln2 := serveNetListener(t, l2)
		c2 := adoptAccepted(t, l2, ln2, peer)
		run(t, tls.Server(c1, serverSide), tls.Client(c2, clientSide))
	})
}

// adoptAccepted adopts nc when Serve is there, and accepts it.
func adoptAccepted(t testing.TB, l *tcpio.Listener, ln net.Listener, nc net.Conn) *tcpio.Conn {
	t.Helper()
	var c *tcpio.Conn
	testnet.WaitFor(t, "Adopt", func() bool {
		var err error
		c, err = l.Adopt(nc)
		return err == nil
	})
	got, err := ln.Accept()
	if err != nil || got != net.Conn(c) {
		t.Fatalf("Accept = %v, %v, want the adopted connection", got, err)
	}
	return c
}
