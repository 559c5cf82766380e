//go:build linux

package contract

import (
	"bufio"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// pipe makes a connection whose one end is a *tcpio.Conn and whose other end is the package net's.
func pipe(t *testing.T, network, addr string) nettest.MakePipe {
	return func() (c1, c2 net.Conn, stop func(), err error) {
		l, err := tcpio.Listen(&tcpio.ListenerOptions{Network: network, Addr: addr})
		if err != nil {
			return nil, nil, nil, err
		}
		ln := l.NetListener()
		served := harness.Go(context.Background(), l)
		end := func() {
			l.Close()
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		}
		if c2, err = net.Dial(network, l.Addr().String()); err != nil {
			end()
			return nil, nil, nil, err
		}
		if c1, err = ln.Accept(); err != nil {
			c2.Close()
			end()
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close(); end() }, nil
	}
}

func TestConnIsANetConn(t *testing.T) { // not parallel: nettest gives each of its tests a minute, whoever else is busy
	t.Run("tcp", func(t *testing.T) { nettest.TestConn(t, pipe(t, "tcp", "127.0.0.1:0")) })
	t.Run("tcp peer", func(t *testing.T) { nettest.TestConn(t, testnet.Swapped(pipe(t, "tcp", "127.0.0.1:0"))) })
	path := filepath.Join(t.TempDir(), "s")
	t.Run("unix", func(t *testing.T) { nettest.TestConn(t, pipe(t, "unix", path)) })
	t.Run("unix peer", func(t *testing.T) { nettest.TestConn(t, testnet.Swapped(pipe(t, "unix", path))) })
}

// blockingPair serves a NetListener and returns both ends of one connection.
func blockingPair(t testing.TB, opts tcpio.ListenerOptions) (*tcpio.Conn, net.Conn) {
	t.Helper()
	l := harness.Listen(t, opts)
	ln := serveNetListener(t, l)
	return acceptPair(t, l, ln)
}

func serveNetListener(t testing.TB, l *tcpio.Listener) net.Listener {
	t.Helper()
	ln := l.NetListener()
	served := harness.Go(context.Background(), l)
	t.Cleanup(func() {
		l.Close()
		if err := testnet.Await(t, "the end of Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln
}

func acceptPair(t testing.TB, l *tcpio.Listener, ln net.Listener) (*tcpio.Conn, net.Conn) {
	t.Helper()
	peer := testnet.Dial(t, l)
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*tcpio.Conn), peer
}

// waitBlocked waits until n goroutines are blocked inside method, such as "(*Conn).Read".
//
// It is not for parallel tests: it counts everybody's goroutines, and to look at them it stops them
// all.
func waitBlocked(t testing.TB, n int, method string) {
	t.Helper()
	testnet.WaitFor(t, fmt.Sprintf("%d goroutines blocked in %s", n, method), func() bool { return blockedIn(method) >= n })
}

// blockedIn returns how many goroutines wait in a method.
func blockedIn(method string) (n int) {
	buf := make([]byte, 1<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		head, _, _ := strings.Cut(g, "\n")
		if strings.Contains(head, "[select") && strings.Contains(g, "tcpio."+method+"(") {
			n++
		}
	}
	return n
}

// outcome is what a Read or Write returned.
type outcome struct {
	n   int
	err error
}

func goRead(c net.Conn, p []byte) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		n, err := c.Read(p)
		done <- outcome{n, err}
	}()
	return done
}

// goWriteForever writes until it fails.
func goWriteForever(c net.Conn) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		p, total := make([]byte, 32<<10), 0
		for {
			n, err := c.Write(p)
			total += n
			if err != nil {
				done <- outcome{total, err}
				return
			}
		}
	}()
	return done
}

// mustTimeOut fails the test unless err has the shape of the package net's timeouts.
func mustTimeOut(t testing.TB, op string, err error) {
	t.Helper()
	var oe *net.OpError
	var ne net.Error
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		t.Fatalf("%s: %v, want os.ErrDeadlineExceeded", op, err)
	case !errors.As(err, &ne) || !ne.Timeout():
		t.Fatalf("%s: %v is no net.Error with Timeout", op, err)
	case !errors.As(err, &oe) || oe.Op != op || oe.Net != "tcp" || oe.Addr == nil || oe.Source == nil:
		t.Fatalf("%s: %#v is no complete *net.OpError", op, err)
	}
}

func TestBlockingWriteOfManyMegabytesArrives(t *testing.T) {
	for _, size := range []int{1 << 10, 32 << 10, 3 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			c, peer := blockingPair(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10})
			sent := testnet.Pattern(size)
			times := 24 << 20 / size
			go func() {
				for range times {
					if n, err := c.Write(sent); n != size || err != nil {
						t.Errorf("Write = %d, %v", n, err)
						break
					}
				}
				c.Close()
			}()
			for range times {
				testnet.ExpectBytes(t, peer, sent)
			}
			testnet.ExpectEOF(t, peer)
		})
	}
}

func TestBufioTextprotoAndGobRunOverAConn(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	type message struct {
		Name  string
		Parts map[string][]byte
	}
	want := message{"m", map[string][]byte{"a": testnet.Pattern(100 << 10), "b": nil}}
	go func() {
		mine := textproto.NewConn(c)
		line, err := mine.ReadLine()
		if err == nil {
			err = mine.PrintfLine("220 you said %s", line)
		}
		var m message
		if err == nil {
			err = gob.NewDecoder(mine.R).Decode(&m)
		}
		if err == nil {
			err = gob.NewEncoder(c).Encode(m)
		}
		if err == nil {
			_, err = bufio.NewReadWriter(mine.R, mine.W).ReadString('\n')
		}
		if err != nil {
			t.Errorf("the server's side: %v", err)
		}
		c.Close()
	}()
	theirs := textproto.NewConn(peer)
	if err := theirs.PrintfLine("hello"); err != nil {
		t.Fatal(err)
	}
	if _, line, err := theirs.ReadCodeLine(220); err != nil || line != "you said hello" {
		t.Fatalf("the reply is %q, %v", line, err)
	}
	if err := gob.NewEncoder(peer).Encode(want); err != nil {
		t.Fatal(err)
	}
	var got message
	if err := gob.NewDecoder(theirs.R).Decode(&got); err != nil || got.Name != want.Name || !reflect.DeepEqual(got.Parts["a"], want.Parts["a"]) {
		t.Fatalf("gob came back as %.40v, %v", got, err)
	}
	testnet.Send(t, peer, "end\n")
	if rest, err := io.ReadAll(theirs.R); len(rest) != 0 || err != nil {
		t.Fatalf("at the end: %q, %v", rest, err)
	}
}

func TestDeadlineInThePastFailsAtOnce(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	testnet.Send(t, peer, "x")
	if err := c.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := c.Read(make([]byte, 1)) // also with a byte there to read
		mustTimeOut(t, "read", err)
		_, err = c.Write([]byte("x"))
		mustTimeOut(t, "write", err)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatalf("Read without a deadline = %d, %v", n, err)
	}
	if _, err := c.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	testnet.ExpectBytes(t, peer, "y")
}

func TestDeadlinesReachBlockedCallers(t *testing.T) {
	past := time.Unix(1, 0)
	for _, tt := range []struct {
		name string
		set  func(deadline func(time.Time) error) error
	}{
		{"set to the past", func(deadline func(time.Time) error) error { return deadline(past) }},
		{"set to the future", func(deadline func(time.Time) error) error { return deadline(time.Now().Add(20 * time.Millisecond)) }},
		{"moved nearer", func(deadline func(time.Time) error) error {
			return errors.Join(deadline(time.Now().Add(time.Hour)), deadline(time.Now().Add(20*time.Millisecond)))
		}},
		{"cleared and set again", func(deadline func(time.Time) error) error {
			return errors.Join(deadline(time.Now().Add(time.Hour)), deadline(time.Time{}), deadline(past))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := blockingPair(t, tcpio.ListenerOptions{})
			// The callers block before there is any deadline, so that it has to reach them.
			read, written := goRead(c, make([]byte, 1)), goWriteForever(c)
			waitBlocked(t, 1, "(*Conn).Read")
			waitBlocked(t, 1, "(*Conn).Write")
			if err := tt.set(c.SetReadDeadline); err != nil {
				t.Fatal(err)
			}
			mustTimeOut(t, "read", testnet.Await(t, "the end of Read", read).err)
			select {
			case w := <-written:
				t.Fatalf("the read deadline ended Write: %v", w.err)
			default:
			}
			if err := tt.set(c.SetWriteDeadline); err != nil {
				t.Fatal(err)
			}
			mustTimeOut(t, "write", testnet.Await(t, "the end of Write", written).err)
		})
	}
}

func TestDeadlineTakenBackInTimeEndsNothing(t *testing.T) {
	t.Parallel()
	for _, to := range []time.Time{{}, time.Now().Add(time.Hour)} {
		c, peer := blockingPair(t, tcpio.ListenerOptions{})
		first := time.Now().Add(60 * time.Millisecond)
		if err := c.SetReadDeadline(first); err != nil {
			t.Fatal(err)
		}
		read := goRead(c, make([]byte, 1))
		if err := c.SetReadDeadline(to); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(first) {
			t.Skip("the machine is too slow to take a deadline back")
		}
		select {
		case r := <-read:
			t.Fatalf("Read = %d, %v", r.n, r.err)
		case <-time.After(time.Until(first) + 20*time.Millisecond):
		}
		testnet.Send(t, peer, "x")
		if r := testnet.Await(t, "the end of Read", read); r.n != 1 || r.err != nil {
			t.Fatalf("Read = %d, %v", r.n, r.err)
		}
	}
}

func TestTimedOutReadHasTakenNothing(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	sent := testnet.Pattern(1 << 20)
	go func() {
		for p := sent; len(p) > 0; {
			n := min(len(p), 1+rand.IntN(9000))
			if _, err := peer.Write(p[:n]); err != nil {
				t.Errorf("the peer's write: %v", err)
				return
			}
			p = p[n:]
		}
	}()
	var got []byte
	buf := make([]byte, 4<<10)
	for len(got) < len(sent) {
		if err := c.SetReadDeadline(time.Now().Add(time.Duration(rand.IntN(200)) * time.Microsecond)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil && (n != 0 || !errors.Is(err, os.ErrDeadlineExceeded)) {
			t.Fatalf("Read = %d, %v", n, err)
		}
	}
	if i := testnet.FirstDifference(got, sent); i >= 0 {
		t.Fatalf("byte %d differs", i)
	}
}

func TestTimedOutWriteTellsHowMuchItTook(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{WriteBuffer: 16 << 10})
	sent := testnet.Pattern(8 << 20)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for p := sent; len(p) > 0; {
			_ = c.SetWriteDeadline(time.Now().Add(time.Duration(rand.IntN(300)) * time.Microsecond))
			n, err := c.Write(p)
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Write = %d, %v", n, err)
				break
			}
			p = p[n:]
		}
		c.Close()
	}()
	testnet.ExpectBytes(t, peer, sent)
	testnet.ExpectEOF(t, peer)
	testnet.Await(t, "the writer", done)
}

func TestDeadlinesMayBeMovedWhileOthersBlock(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{WriteBuffer: 16 << 10})
	const size = 2 << 20
	go func() { io.Copy(peer, peer) }()
	stop := make(chan struct{})
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Duration(rand.IntN(400)-100) * time.Microsecond))
			_ = c.SetWriteDeadline(time.Time{})
			_ = c.SetDeadline(time.Now().Add(time.Duration(rand.IntN(2000)) * time.Microsecond))
			runtime.Gosched()
		}
	}()
	sent := testnet.Pattern(size)
	testnet.Together(func() {
		for p := sent; len(p) > 0; {
			n, err := c.Write(p[:min(len(p), 9999)])
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Write: %v", err)
				return
			}
			p = p[n:]
		}
	}, func() {
		got := make([]byte, 0, size)
		for len(got) < size {
			n, err := c.Read(got[len(got):size])
			got = got[:len(got)+n]
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read: %v", err)
				return
			}
		}
		if i := testnet.FirstDifference(got, sent); i >= 0 {
			t.Errorf("byte %d differs", i)
		}
	})
	close(stop)
	testnet.Await(t, "the mover", moved)
}

func TestCloseWakesBlockedCallersWithErrClosed(t *testing.T) {
	for name, end := range map[string]func(*tcpio.Conn) error{"Close": (*tcpio.Conn).Close, "Abort": (*tcpio.Conn).Abort} {
		t.Run(name, func(t *testing.T) {
			c, _ := blockingPair(t, tcpio.ListenerOptions{})
			readers := []<-chan outcome{goRead(c, make([]byte, 1)), goRead(c, make([]byte, 1))}
			written := goWriteForever(c)
			waitBlocked(t, 2, "(*Conn).Read")
			waitBlocked(t, 1, "(*Conn).Write")
			if err := end(c); err != nil {
				t.Fatal(err)
			}
			for _, done := range append(readers, written) {
				err := testnet.Await(t, "the end of a blocked call", done).err
				var oe *net.OpError
				if !errors.Is(err, net.ErrClosed) || !errors.As(err, &oe) {
					t.Errorf("a blocked call ended with %v, want net.ErrClosed in a *net.OpError", err)
				}
			}
			if err := c.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("SetDeadline = %v, want net.ErrClosed", err)
			}
			c.Abort()
		})
	}
}

func TestResetReachesBlockedCallers(t *testing.T) {
	c, peer := blockingPair(t, tcpio.ListenerOptions{})
	read, written := goRead(c, make([]byte, 1)), goWriteForever(c)
	waitBlocked(t, 1, "(*Conn).Read")
	waitBlocked(t, 1, "(*Conn).Write")
	testnet.RST(t, peer)
	for _, done := range []<-chan outcome{read, written} {
		// The kernel tells the reset once; the other caller sees that the connection is over.
		if err := testnet.Await(t, "the end of a blocked call", done).err; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, net.ErrClosed) {
			t.Errorf("a blocked call ended with %v", err)
		}
	}
}
