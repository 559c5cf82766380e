//go:build linux

package contract

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
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

// No call keeps a connection's lock for work of the caller's size: others get it in between, as its loop must.
func TestALargeWriteLeavesTheConnectionToOthers(t *testing.T) {
	const size = 64 << 20
	p := make([]byte, size)
	many := make(net.Buffers, 1<<20)
	for i := range many {
		many[i] = p[i*64 : (i+1)*64]
	}
	group := func(c *tcpio.Conn) (int64, error) {
		var g tcpio.Group
		g.Join(c)
		n, err := g.Write(p)
		return int64(n), err
	}
	writes := map[string]func(c *tcpio.Conn) (int64, error){
		"TryWrite":  func(c *tcpio.Conn) (int64, error) { n, err := c.TryWrite(p); return int64(n), err },
		"TryWritev": func(c *tcpio.Conn) (int64, error) { return c.TryWritev(net.Buffers{p[:size/2], nil, p[size/2:]}) },
		"pieces":    func(c *tcpio.Conn) (int64, error) { return c.TryWritev(many) },
		"Write":     func(c *tcpio.Conn) (int64, error) { n, err := c.Write(p); return int64(n), err },
		"ReadFrom":  func(c *tcpio.Conn) (int64, error) { return c.ReadFrom(bytes.NewReader(p)) },
	}
	for _, layer := range []string{"plain", "TLS"} {
		conns := make(chan *tcpio.Conn, 1)
		o := tcpio.ListenerOptions{Actor: func(*tcpio.Conn) tcpio.Actor {
			return tcpio.ActorFunc(func(ev tcpio.Event) error {
				if o, ok := ev.(tcpio.Opened); ok {
					conns <- o.Conn
				}
				return nil
			})
		}}
		if layer == "TLS" {
			o.TLSConfig = testnet.ServerTLS()
			writes["a group"] = group // without TLS it shares one copy, and keeps no lock
		}
		l := harness.Serve(t, o)
		for name, write := range writes {
			t.Run(layer+" "+name, func(t *testing.T) {
				peer := testnet.Dial(t, l)
				if layer == "TLS" {
					secure := tls.Client(peer, testnet.ClientTLS())
					if err := secure.Handshake(); err != nil {
						t.Fatal(err)
					}
					peer = secure
				}
				c := testnet.Await(t, "Opened", conns)
				go func() { _, _ = io.Copy(io.Discard, peer) }()
				// Whoever waits for the lock in the middle of a write has it before the end, unless the machine did not run
				// it for so long; then another time.
				for range 20 {
					before := l.Stats().BytesOut
					var over atomic.Bool
					amidst := make(chan bool, 1)
					go func() {
						for l.Stats().BytesOut < before+1<<20 && !over.Load() {
						}
						c.Data()
						amidst <- !over.Load()
					}()
					n, err := write(c)
					over.Store(true)
					if n != size || err != nil {
						t.Fatalf("%d bytes, %v", n, err)
					}
					testnet.WaitFor(t, "the queue to be empty", func() bool { return c.Buffered() == 0 })
					if testnet.Await(t, "the lock", amidst) {
						c.Abort()
						return
					}
				}
				t.Error("nobody else ever had the lock before the end of the write")
			})
		}
	}
}

// Nor does the end of a connection that has very many timers and groups.
func TestTheEndOfAConnectionWithManyTimersLeavesItToOthers(t *testing.T) {
	const timers, groups = 100_000, 10_000
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, _ := harness.Open(t, l, events)
	for range timers {
		c.After(time.Hour, nil)
	}
	all := make([]tcpio.Group, groups)
	for i := range all {
		all[i].Join(c)
	}
	c.Abort()
	harness.Expect[tcpio.Closed](t, events)
	testnet.WaitFor(t, "the groups to be left", func() bool {
		for i := range all {
			if all[i].Len() != 0 {
				return false
			}
		}
		return true
	})
}

// A large TryWrite is all or nothing also where others have the lock in between.
func TestALargeWriteIsWholeWhateverOthersDoMeanwhile(t *testing.T) {
	want := testnet.Pattern(32 << 20)
	ends := map[string]func(c *tcpio.Conn){
		"Close":      func(c *tcpio.Conn) { c.Close() },
		"CloseWrite": func(c *tcpio.Conn) { _ = c.CloseWrite() },
		"TryWrite":   func(c *tcpio.Conn) { _, _ = c.TryWrite([]byte("!")) },
	}
	for _, layer := range []string{"plain", "TLS"} {
		for name, end := range ends {
			t.Run(layer+" "+name, func(t *testing.T) {
				conns := make(chan *tcpio.Conn, 1)
				o := tcpio.ListenerOptions{CloseTimeout: testnet.Limit, Actor: func(*tcpio.Conn) tcpio.Actor {
					return tcpio.ActorFunc(func(ev tcpio.Event) error {
						if o, ok := ev.(tcpio.Opened); ok {
							conns <- o.Conn
						}
						return nil
					})
				}}
				if layer == "TLS" {
					o.TLSConfig = testnet.ServerTLS()
				}
				l := harness.Serve(t, o)
				peer := testnet.Dial(t, l)
				if layer == "TLS" {
					peer = tls.Client(peer, testnet.ClientTLS())
					if err := peer.(*tls.Conn).Handshake(); err != nil {
						t.Fatal(err)
					}
				}
				c := testnet.Await(t, "Opened", conns)
				got := make(chan []byte, 1)
				go func() {
					p := make([]byte, len(want))
					n, _ := io.ReadFull(peer, p)
					got <- p[:n]
				}()
				before, over := l.Stats().BytesOut, make(chan struct{})
				defer close(over)
				go func() { // in the middle of the write, if the machine lets it
					for l.Stats().BytesOut < before+1<<20 {
						select {
						case <-over:
							return
						default:
						}
					}
					end(c)
				}()
				n, err := c.TryWrite(want)
				switch {
				case errors.Is(err, net.ErrClosed) && n == 0 && name == "Close": // it came first
					return
				case n != len(want) || err != nil:
					t.Fatalf("TryWrite = %d, %v", n, err)
				}
				if got := testnet.Await(t, "the peer", got); !bytes.Equal(got, want) {
					t.Errorf("the peer got %d bytes, the first wrong one is %d", len(got), testnet.FirstDifference(got, want))
				}
				c.Close()
			})
		}
	}
}

// A peer that never stops sending lines does not keep the consumer from the others.
func TestAnIterationOfFramesEndsWhileThePeerGoesOn(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		lines := bytes.Repeat([]byte("a line\n"), 10_000)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := peer.Write(lines); err != nil {
				return
			}
		}
	}()
	for range 100 {
		ev := harness.Expect[tcpio.Readable](t, events)
		frames := 0
		for line, err := range ev.Conn.Frames(bufio.ScanLines) {
			if err != nil || !bytes.HasPrefix([]byte("a line"), line) && string(line) != "a line" {
				t.Fatalf("%q, %v", line, err)
			}
			if frames++; frames > 1024 {
				t.Fatal("the iteration goes on")
			}
		}
	}
	c.Abort()
}

// A frame ends where its memory ends: what is appended to it goes elsewhere, and it may be changed in place.
func TestAFrameDoesNotReachIntoTheNext(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	testnet.Send(t, peer, "one\ntwo\nthree\n")
	var got []string
	for len(got) < 3 {
		ev := harness.Expect[tcpio.Readable](t, events)
		for line, err := range ev.Conn.Frames(bufio.ScanLines) {
			if err != nil {
				t.Fatal(err)
			}
			if cap(line) != len(line) {
				t.Errorf("frame %q has capacity %d", line, cap(line))
			}
			got = append(got, string(line))
			line[0] = 'X'
			_ = append(line, " and much more than there is room for"...)
		}
	}
	if fmt.Sprint(got) != "[one two three]" {
		t.Errorf("frames %q", got)
	}
	c.Abort()
}

// A consumer that reads until ErrWouldBlock gets no Readable for each of its reads, and none behind the end.
func TestAConsumerThatReadsInALoopGetsOneReadableAtATime(t *testing.T) {
	for _, layer := range []string{"plain", "TLS", "claimed"} {
		t.Run(layer, func(t *testing.T) {
			o := tcpio.ListenerOptions{}
			if layer == "TLS" {
				o.TLSConfig = testnet.ServerTLS()
			}
			l, events := harness.Manual(t, o)
			peer := testnet.Dial(t, l)
			if layer == "TLS" {
				secure := tls.Client(peer, testnet.ClientTLS())
				if err := secure.Handshake(); err != nil {
					t.Fatal(err)
				}
				peer = secure
			}
			c := harness.Expect[tcpio.Opened](t, events).Conn
			if layer == "claimed" {
				events = c.Events()
			}
			const size = 50_000
			testnet.Send(t, peer, testnet.Pattern(size))
			testnet.FIN(t, peer)
			readables, read, ends := 0, 0, 0
			buf := make([]byte, 1000)
			for ends == 0 {
				harness.Expect[tcpio.Readable](t, events)
				readables++
				for {
					n, err := c.TryRead(buf)
					read += n
					if err == io.EOF {
						ends++
					}
					if err != nil {
						break
					}
				}
			}
			harness.ExpectSilence(t, events, 20*time.Millisecond)
			// The bytes may have come in several segments; each wakes the consumer at most once, and once more.
			if read != size || ends != 1 || readables > 8 {
				t.Errorf("%d bytes, %d ends, %d Readables", read, ends, readables)
			}
			c.Abort()
		})
	}
}

// One that reads once for each Readable misses nothing, beside others on the same channel.
func TestTakingBackAReadableKeepsTheOrderOfAllOthers(t *testing.T) {
	const conns, values = 8, 200
	l := harness.Listen(t, tcpio.ListenerOptions{EventBuffer: 64})
	events := l.Events()
	served := harness.Go(t.Context(), l)
	var peers []net.Conn
	for range conns {
		peers = append(peers, testnet.Dial(t, l))
	}
	next := map[*tcpio.Conn]int{}
	var order harness.Order
	ended, closed := 0, 0
	buf := make([]byte, 100)
	for closed < conns {
		ev := testnet.Await(t, "an event", events)
		if err := order.Check(ev); err != nil {
			t.Error(err)
		}
		switch ev := ev.(type) {
		case tcpio.Opened:
			go func() {
				for i := range values {
					for ev.Conn.Post(i) == tcpio.ErrMailboxFull {
						time.Sleep(time.Millisecond)
					}
				}
			}()
			if order.Seen == conns {
				for _, p := range peers {
					go func() {
						_, _ = p.Write(make([]byte, 1000))
						_ = p.(*net.TCPConn).CloseWrite()
					}()
				}
			}
		case tcpio.Message:
			if ev.Value != next[ev.Conn] {
				t.Fatalf("message %v, want %d", ev.Value, next[ev.Conn])
			}
			if next[ev.Conn]++; next[ev.Conn] == values && ev.Conn.Data() != nil {
				ev.Conn.Close()
			}
		case tcpio.Readable:
			if ev.Conn.Data() != nil {
				t.Fatal("Readable behind io.EOF")
			}
			for {
				_, err := ev.Conn.TryRead(buf)
				if err == io.EOF {
					ev.Conn.SetData("ended")
					if ended++; next[ev.Conn] == values {
						ev.Conn.Close()
					}
				}
				if err != nil {
					break
				}
			}
		case tcpio.Closed:
			closed++
		}
	}
	if ended != conns {
		t.Errorf("%d ends", ended)
	}
	l.Close()
	testnet.Await(t, "the end of Serve", served)
}

// A Readable answered by a raw read is answered.
func TestRawReadsDoNotSpin(t *testing.T) {
	l, events := harness.Manual(t, tcpio.ListenerOptions{})
	c, peer := harness.Open(t, l, events)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	read := func() (n int) {
		harness.Expect[tcpio.Readable](t, events)
		err := rc.Read(func(fd uintptr) bool { n, _ = unix.Read(int(fd), make([]byte, 2)); return true })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 3 {
		testnet.Send(t, peer, "abc")
		if a, b := read(), read(); a+b != 3 {
			t.Fatalf("%d and %d bytes", a, b)
		}
		harness.ExpectSilence(t, events, 10*time.Millisecond)
	}
}
