//go:build linux

package tcpio_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
)

// What users of other epoll libraries ran into; one test each.

func TestANewcomerSeesNothingOfTheFormerOwnerOfItsDescriptor(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	reused := 0
	for range 50 {
		hole, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) // a number for the newcomer's own end
		if err != nil {
			t.Fatal(err)
		}
		a, peerA := open(t, l, events)
		b, peerB := open(t, l, events)
		number := 0
		control(t, b, func(fd int) error { number = fd; return nil })
		// Both become ready; the newcomer waits in the backlog. Closing b frees its number for it.
		send(t, peerA, []byte("a"))
		send(t, peerB, []byte("for b alone"))
		first := expect[tcpio.Readable](t, events).Conn
		if first != a {
			t.Fatal("the first one ready is not the first one announced")
		}
		b.Abort()
		unix.Close(hole)
		newcomer := dial(t, l)
		var c *tcpio.Conn
		for opened, closed := false, false; !opened || !closed; {
			switch ev := receive(t, "Opened and Closed", events).(type) {
			case tcpio.Opened:
				opened, c = true, ev.Conn
			case tcpio.Closed:
				closed = true
				if ev.Conn != b {
					t.Fatal("Closed of the wrong connection")
				}
			case tcpio.Readable:
				if ev.Conn != b || closed {
					t.Fatal("Readable of the wrong connection")
				}
			}
		}
		control(t, c, func(fd int) error {
			if fd == number {
				reused++
			}
			return nil
		})
		if n, err := c.TryRead(make([]byte, 100)); n != 0 || err != tcpio.ErrWouldBlock {
			t.Fatalf("the newcomer read %d, %v", n, err)
		}
		if n, err := b.TryRead(make([]byte, 100)); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("the closed one read %d, %v", n, err)
		}
		if n, err := b.TryWrite([]byte("to nobody")); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("the closed one wrote %d, %v", n, err)
		}
		send(t, newcomer, []byte("mine"))
		if got, err := readStream(t, events, c, 4, 100); string(got) != "mine" || err != nil {
			t.Fatalf("the newcomer read %q, %v", got, err)
		}
		a.Abort()
		c.Abort()
		expect[tcpio.Closed](t, events)
		expect[tcpio.Closed](t, events)
		for _, peer := range []net.Conn{peerA, peerB, newcomer} {
			peer.Close()
		}
	}
	if reused < 25 {
		t.Errorf("only %d of 50 newcomers got the number of the connection before", reused)
	}
}

func TestAReplyAfterTheClientsHalfCloseArrives(t *testing.T) {
	answered := make(chan struct{})
	l := startStream(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) {
		r, ok := ev.(tcpio.Readable)
		if !ok {
			return
		}
		for {
			_, err := r.Conn.TryRead(make([]byte, 100))
			if err == io.EOF && r.Conn.Data() == nil {
				r.Conn.SetData("seen") // a stale Readable shows the end again
				time.AfterFunc(150*time.Millisecond, func() {
					defer close(answered)
					if _, err := r.Conn.TryWrite([]byte("late reply")); err != nil {
						t.Errorf("TryWrite: %v", err)
					}
					r.Conn.Close()
				})
			}
			if err != nil {
				return
			}
		}
	})
	peer := dial(t, l)
	send(t, peer, []byte("request"))
	sendFIN(t, peer)
	expectBytes(t, peer, []byte("late reply"))
	expectEOF(t, peer)
	receive(t, "the end of the handler", answered)
}

func TestInputThatCameWithAFINIsReadToTheLastByte(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			opts := tcpio.ListenerOptions{Network: network}
			if network == "unix" {
				opts.Addr = filepath.Join(t.TempDir(), "s")
			}
			l, events := startManual(t, opts)
			c, peer := open(t, l, events)
			want := pattern(1 << 20)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				if _, err := peer.Write(want); err != nil {
					t.Errorf("the peer's write: %v", err)
				}
				peer.Close()
			}()
			if network == "tcp" {
				receive(t, "data and FIN under way", sent) // before anything is read
			}
			got, err := readStream(t, events, c, -1, 5000)
			if err != io.EOF || !bytes.Equal(got, want) {
				t.Fatalf("read %d of %d bytes, %v; they differ at %d", len(got), len(want), err, firstDifference(got, want))
			}
			c.Close()
			if ev := expect[tcpio.Closed](t, events); ev.Conn.Err() != nil {
				t.Errorf("Err = %v", ev.Conn.Err())
			}
		})
	}
}

func TestAResetIsToldHoweverFarReadingHasCome(t *testing.T) {
	// Linux throws away what is unread when a reset arrives, so what counts is that the connection ends with it, however
	// far reading has come, and that what was read before is right.
	for _, readFirst := range []int{0, 10, 1000} {
		l, events := startManual(t, tcpio.ListenerOptions{})
		c, peer := open(t, l, events)
		want := pattern(1000)
		send(t, peer, want)
		var got []byte
		if readFirst > 0 {
			var err error
			if got, err = readStream(t, events, c, readFirst, readFirst); err != nil {
				t.Fatal(err)
			}
		}
		sendRST(t, peer)
		rest, err := readStream(t, events, c, -1, 100)
		got = append(got, rest...)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after %d bytes: TryRead: %v, want a reset", readFirst, err)
		}
		if !bytes.HasPrefix(want, got) {
			t.Errorf("read %d bytes that were not sent", len(got))
		}
		for { // a Readable for the reset may be on its way yet
			ev := receive(t, "Closed", events)
			if _, ok := ev.(tcpio.Closed); ok {
				break
			}
			if _, ok := ev.(tcpio.Readable); !ok {
				t.Fatalf("got %T", ev)
			}
		}
		if !errors.Is(c.Err(), syscall.ECONNRESET) {
			t.Errorf("Err = %v, want a reset", c.Err())
		}
	}
}

func TestAResetOfASilentConnectionIsToldWithoutReading(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	sendFIN(t, peer)
	if _, err := readStream(t, events, c, -1, 100); err != io.EOF {
		t.Fatal(err)
	}
	// Nothing is left to read: no Readable can bring the reset.
	sendRST(t, peer)
	if err := expect[tcpio.Closed](t, events).Conn.Err(); err == nil {
		t.Error("Err = nil after a reset")
	}
}

func TestAPausedConnectionIsResumedWithoutNewData(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	other, otherPeer := open(t, l, events)
	want := pattern(5000)
	send(t, peer, want[:100])
	expect[tcpio.Readable](t, events) // and now it is paused
	send(t, peer, want[100:])         // an edge that nobody acts upon
	send(t, otherPeer, []byte("x"))   // the loop has seen it by now
	if ev := expect[tcpio.Readable](t, events); ev.Conn != other {
		t.Fatal("Readable while paused")
	}
	buf := make([]byte, 60)
	n, err := c.TryRead(buf) // resumed: the rest must come without another byte from the peer
	if n != 60 || err != nil {
		t.Fatalf("TryRead = %d, %v", n, err)
	}
	got := slices.Clone(buf)
	rest, err := readStream(t, events, c, len(want)-60, 4000)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes, %v", len(got), len(want), err)
	}
}

func TestAFastPeerDoesNotStarveTheOthers(t *testing.T) {
	l := startStream(t, tcpio.ListenerOptions{WriteBuffer: 64 << 10}, echoBlast(t))
	blaster := dial(t, l)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		p := make([]byte, 256<<10) // zeroes are swallowed
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := blaster.Write(p); err != nil {
					t.Errorf("the blaster's write: %v", err)
					return
				}
			}
		}
	})
	const pingers, rounds = 100, 20
	var mu sync.Mutex
	var times []time.Duration
	var pings sync.WaitGroup
	for range pingers {
		peer := dial(t, l)
		pings.Go(func() {
			p := []byte("ping")
			for range rounds {
				start := time.Now()
				if _, err := peer.Write(p); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				if _, err := io.ReadFull(peer, p); err != nil {
					t.Errorf("read: %v", err)
					return
				}
				mu.Lock()
				times = append(times, time.Since(start))
				mu.Unlock()
			}
		})
	}
	pings.Wait()
	close(stop)
	wg.Wait()
	if len(times) == 0 {
		return
	}
	slices.Sort(times)
	// Milliseconds when it is fair, however slow the machine; a starved pinger waits for as long as the blast lasts.
	if p99 := times[len(times)*99/100]; p99 > 2*time.Second {
		t.Errorf("p99 of a ping beside a blaster is %v", p99)
	}
}

// echoBlast echoes small messages and swallows zeroes.
func echoBlast(t *testing.T) func(tcpio.Event) {
	buf := make([]byte, 64<<10)
	return func(ev tcpio.Event) {
		r, ok := ev.(tcpio.Readable)
		if !ok {
			return
		}
		n, err := r.Conn.TryRead(buf)
		if err == nil && buf[0] != 0 {
			if _, err := r.Conn.TryWrite(buf[:n]); err != nil && !benign(err) {
				t.Errorf("TryWrite: %v", err)
			}
		}
	}
}

func TestUrgentDataDoesNotStallTheStream(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{})
	c, peer := open(t, l, events)
	raw := func(f func(fd int) error) {
		t.Helper()
		rc, err := peer.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var ferr error
		if err := rc.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil || ferr != nil {
			t.Fatal(err, ferr)
		}
	}
	urgent := func(p string) {
		t.Helper()
		raw(func(fd int) error { return unix.Sendto(fd, []byte(p), unix.MSG_OOB, nil) })
	}
	// A read stops at the mark: what looks like a short read is none.
	var want []byte
	for i := range 20 {
		block := pattern(100 + i)
		send(t, peer, block)
		urgent("!")
		want = append(want, block...)
	}
	send(t, peer, []byte("the end"))
	want = append(want, "the end"...)
	var got []byte
	buf := make([]byte, 4096)
	for len(got) < len(want) {
		expect[tcpio.Readable](t, events)
		n, err := c.TryRead(buf)
		if err != nil && err != tcpio.ErrWouldBlock {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
		// An urgent byte that the next one overtook becomes part of the stream, as tcp(7) has it.
		got = bytes.ReplaceAll(got, []byte("!"), nil)
		if len(got) >= len(bytes.ReplaceAll(want, []byte("!"), nil)) {
			break
		}
	}
	if want = bytes.ReplaceAll(want, []byte("!"), nil); !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes, they differ at %d", len(got), len(want), firstDifference(got, want))
	}
	// Urgent data alone, and then a plain byte.
	urgent("?")
	send(t, peer, []byte("x"))
	for {
		expect[tcpio.Readable](t, events)
		if n, _ := c.TryRead(buf); bytes.Contains(buf[:n], []byte("x")) {
			return
		}
	}
}

func TestPassedDescriptorsDoNotStallTheStream(t *testing.T) {
	l, events := startManual(t, tcpio.ListenerOptions{Network: "unix", Addr: filepath.Join(t.TempDir(), "s")})
	c, peer := open(t, l, events)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	rights := unix.UnixRights(pipe[1])
	var want []byte
	for i := range 20 { // a read of a unix stream stops at each
		block := pattern(50 + i)
		if _, _, err := peer.(*net.UnixConn).WriteMsgUnix(block, rights, nil); err != nil {
			t.Fatal(err)
		}
		want = append(want, block...)
		send(t, peer, block)
		want = append(want, block...)
	}
	unix.Close(pipe[1])
	got, err := readStream(t, events, c, len(want), 64<<10)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d of %d bytes, %v; they differ at %d", len(got), len(want), err, firstDifference(got, want))
	}
	// Nobody took the descriptors, so nobody holds them: the pipe has no writer any more.
	n, err := unix.Read(pipe[0], make([]byte, 1))
	if n != 0 || err != nil {
		t.Errorf("read of the pipe = %d, %v, want its end", n, err)
	}
}

func TestConcurrentUseOfAClosingConnectionIsSafe(t *testing.T) {
	// What the race detector finds, and what hangs; calls either work or match net.ErrClosed and its like.
	var closed atomic.Int64
	conns := make(chan *tcpio.Conn, 1000)
	l := startStream(t, tcpio.ListenerOptions{EventBuffer: 16, MailboxSize: 4}, func(ev tcpio.Event) {
		switch ev := ev.(type) {
		case tcpio.Opened:
			conns <- ev.Conn
		case tcpio.Readable:
			ev.Conn.TryRead(make([]byte, 10))
		case tcpio.Closed:
			closed.Add(1)
		}
	})
	const rounds = 60
	for i := range rounds {
		peer := dial(t, l)
		c := receive(t, "Opened", conns)
		go io.Copy(io.Discard, peer)
		fine := func(err error) {
			if err != nil && err != tcpio.ErrWouldBlock && err != tcpio.ErrMailboxFull && !benign(err) && err != io.EOF {
				t.Error(err)
			}
		}
		together(
			func() {
				for range 20 {
					_, err := c.TryWrite(make([]byte, 2000))
					fine(err)
				}
			},
			func() {
				for range 20 {
					_, err := c.TryRead(make([]byte, 10))
					fine(err)
				}
			},
			func() {
				for j := range 20 {
					fine(c.Post(j))
				}
			},
			func() {
				c.Buffered()
				c.LocalAddr()
				c.Err()
				if rc, err := c.SyscallConn(); err == nil {
					fine(rc.Control(func(uintptr) { runtime.Gosched() }))
				}
			},
			func() {
				peer.Write(make([]byte, 100))
				if i%3 == 0 {
					peer.Close()
				}
			},
			func() {
				for range i {
					runtime.Gosched()
				}
				if i%2 == 0 {
					fine(c.Close())
				}
				fine(c.Abort())
			},
		)
		peer.Close()
	}
	waitFor(t, "Closed of all", func() bool { return closed.Load() == rounds })
}
