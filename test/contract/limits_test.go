//go:build linux

package contract

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rabbit-backend/tcpio"
	"github.com/rabbit-backend/tcpio/internal/testnet"
	"github.com/rabbit-backend/tcpio/test/harness"
)

// limitWait bounds what the tests wait for; nothing here is expected to take as long.
const limitWait = 30 * time.Second

// served is a listener whose closed connections come out of a channel, and whose events are otherwise answered by on.
type served struct {
	l      *tcpio.Listener
	closed chan *tcpio.Conn
}

func serveLimited(t *testing.T, opts tcpio.ListenerOptions, on func(tcpio.Event)) *served {
	t.Helper()
	opts.Addr = "127.0.0.1:0"
	opts.CloseTimeout = 200 * time.Millisecond // the peers here keep their end open
	l, err := tcpio.Listen(&opts)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{l: l, closed: make(chan *tcpio.Conn, 100)}
	done := make(chan error, 2)
	events := l.Events()
	go func() {
		for ev := range events {
			if on != nil {
				on(ev)
			}
			if c, ok := ev.(tcpio.Closed); ok {
				s.closed <- c.Conn
			}
		}
		done <- nil
	}()
	ended := harness.Go(context.Background(), l)
	t.Cleanup(func() {
		l.Close()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		<-done
	})
	return s
}

func (s *served) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(limitWait)); err != nil {
		t.Fatal(err)
	}
	return c
}

// nextLimit waits for a connection to end by the limit of that name.
func (s *served) nextLimit(t *testing.T, name string) {
	t.Helper()
	select {
	case c := <-s.closed:
		var limit *tcpio.LimitError
		if err := c.Err(); !errors.As(err, &limit) || limit.Limit != name || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the connection ended with %v, want the %s limit", err, name)
		}
	case <-time.After(limitWait):
		t.Fatalf("no connection ended by the %s limit", name)
	}
}

func readAll(ev tcpio.Event) {
	if r, ok := ev.(tcpio.Readable); ok {
		buf := make([]byte, 1000)
		if n, err := r.Conn.TryRead(buf); err == nil {
			_, _ = r.Conn.TryWrite(buf[:n])
		} else if !errors.Is(err, tcpio.ErrWouldBlock) {
			r.Conn.Close()
		}
	}
}

func TestIdleTimeoutClosesASilentConnection(t *testing.T) {
	t.Parallel()
	s := serveLimited(t, tcpio.ListenerOptions{IdleTimeout: 50 * time.Millisecond}, readAll)
	c := s.dial(t)
	s.nextLimit(t, "idle")
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer sees %v, want an orderly end", err)
	}
	if n := s.l.Stats().Timeouts.Idle; n != 1 {
		t.Errorf("%d idle time-outs counted, want 1", n)
	}
}

// Activity either way puts the limit off: a connection that is talked to for many times the limit stays.
func TestActivityPutsTheIdleTimeoutOff(t *testing.T) {
	t.Parallel()
	const limit = 400 * time.Millisecond
	s := serveLimited(t, tcpio.ListenerOptions{IdleTimeout: limit}, readAll)
	c := s.dial(t)
	tick := time.NewTicker(limit / 20)
	defer tick.Stop()
	var last time.Time
	for start := time.Now(); time.Since(start) < 3*limit; <-tick.C {
		if !last.IsZero() && time.Since(last) > limit*9/10 {
			t.Skip("the machine was busy: this test's own pauses were too long")
		}
		last = time.Now()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("closed while active: %v", err)
		}
	}
	s.nextLimit(t, "idle")
}

func TestSetIdleTimeoutChangesOneConnection(t *testing.T) {
	t.Parallel()
	first := true
	s := serveLimited(t, tcpio.ListenerOptions{}, func(ev tcpio.Event) {
		readAll(ev)
		if o, ok := ev.(tcpio.Opened); ok {
			if err := o.Conn.SetIdleTimeout(-1); err == nil {
				t.Error("a negative limit was taken")
			}
			if first {
				first = false
				if err := o.Conn.SetIdleTimeout(20 * time.Millisecond); err != nil {
					t.Error(err)
				}
			}
		}
	})
	c1, c2 := s.dial(t), s.dial(t)
	s.nextLimit(t, "idle")
	alive := 0
	for _, c := range []net.Conn{c1, c2} {
		_, _ = c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
			alive++
		}
	}
	if alive != 1 {
		t.Errorf("%d connections live on, want 1", alive)
	}
}

func TestReadTimeoutEndsAPeerThatNeverBegins(t *testing.T) {
	t.Parallel()
	s := serveLimited(t, tcpio.ListenerOptions{ReadTimeout: 50 * time.Millisecond}, readAll)
	s.dial(t)
	s.nextLimit(t, "read")
}

func TestReadTimeoutEndsAnUnfinishedFrame(t *testing.T) {
	t.Parallel()
	split := func(data []byte, atEOF bool) (int, []byte, error) {
		if len(data) < 4 {
			return 0, nil, nil
		}
		return 4, data[:4], nil
	}
	frames := make(chan string, 10)
	s := serveLimited(t, tcpio.ListenerOptions{ReadTimeout: 100 * time.Millisecond}, func(ev tcpio.Event) {
		if r, ok := ev.(tcpio.Readable); ok {
			for frame, err := range r.Conn.Frames(split) {
				if err != nil {
					return
				}
				frames <- string(frame)
			}
		}
	})
	c := s.dial(t)
	if _, err := c.Write([]byte("wholeha")); err != nil {
		t.Fatal(err)
	}
	s.nextLimit(t, "read")
	if f := <-frames; f != "whol" {
		t.Errorf("the first frame is %q", f)
	}
	// Between frames there is no limit.
	c = s.dial(t)
	if _, err := c.Write([]byte("four")); err != nil {
		t.Fatal(err)
	}
	<-frames
	select {
	case c := <-s.closed:
		t.Errorf("a connection between two frames ended: %v", c.Err())
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := c.Write([]byte("ha")); err != nil {
		t.Fatal(err)
	}
	s.nextLimit(t, "read")
}

func TestWriteTimeoutAbortsOutputThatDoesNotMove(t *testing.T) {
	t.Parallel()
	s := serveLimited(t, tcpio.ListenerOptions{WriteTimeout: 100 * time.Millisecond, WriteBuffer: 32 << 20}, func(ev tcpio.Event) {
		if o, ok := ev.(tcpio.Opened); ok {
			if _, err := o.Conn.TryWrite(make([]byte, 30<<20)); err != nil && !errors.Is(err, net.ErrClosed) { // cut off already: the machine is slow
				t.Error(err)
			}
		}
	})
	c := s.dial(t)
	s.nextLimit(t, "write")
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer sees %v, want a reset", err)
	}
	if q := s.l.Stats().Queued; q != 0 {
		t.Errorf("%d bytes are still counted as queued", q)
	}
}

func TestUserTimeoutIsInherited(t *testing.T) {
	got := make(chan int, 1)
	s := serveLimited(t, tcpio.ListenerOptions{UserTimeout: 12345 * time.Millisecond}, func(ev tcpio.Event) {
		if o, ok := ev.(tcpio.Opened); ok {
			raw, err := o.Conn.SyscallConn()
			if err != nil {
				t.Error(err)
				return
			}
			_ = raw.Control(func(fd uintptr) {
				const tcpUserTimeout = 18 // tcp(7)
				v, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
				if err != nil {
					t.Error(err)
				}
				got <- v
			})
		}
	})
	s.dial(t)
	if v := <-got; v != 12345 {
		t.Errorf("TCP_USER_TIMEOUT is %d ms, want 12345", v)
	}
}

// refused reads what a refused peer gets.
func refused(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("a refused peer sees %v", err)
	}
	return string(b)
}

func echoed(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("not served: %v", err)
	}
}

func TestMaxConnsRefusesWithAReplyAndServesAgain(t *testing.T) {
	s := serveLimited(t, tcpio.ListenerOptions{MaxConns: 2, RefuseReply: []byte("full\n")}, readAll)
	c1, c2 := s.dial(t), s.dial(t)
	echoed(t, c1)
	echoed(t, c2)
	c3 := s.dial(t)
	if _, err := c3.Write([]byte("unread input does not cost the reply")); err != nil {
		t.Fatal(err)
	}
	if got := refused(t, c3); got != "full\n" {
		t.Errorf("a refused peer got %q", got)
	}
	if n := s.l.Stats().Refused.Conns; n != 1 {
		t.Errorf("%d refusals counted, want 1", n)
	}
	c1.Close()
	<-s.closed
	echoed(t, s.dial(t))
}

func TestARefusedConnectionIsCountedAsRefusedOnly(t *testing.T) {
	s := serveLimited(t, tcpio.ListenerOptions{MaxConns: 1, RefuseReply: []byte("full\n")}, readAll)
	echoed(t, s.dial(t))
	c := s.dial(t)
	refused(t, c)
	c.Close()
	testnet.WaitFor(t, "the refused connection is gone", func() bool { return s.l.Stats().Refusing == 0 })
	if st := s.l.Stats(); st.Accepted != 1 || st.Closed != 0 || st.Refused.Conns != 1 {
		t.Errorf("%d accepted, %d closed, %d refused, want 1, 0, 1", st.Accepted, st.Closed, st.Refused.Conns)
	}
}

func TestMaxConnsPerIPCountsAddressesApart(t *testing.T) {
	s := serveLimited(t, tcpio.ListenerOptions{MaxConnsPerIP: 1}, readAll)
	from := func(ip string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: limitWait}
		c, err := d.Dial("tcp", s.l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(limitWait))
		return c
	}
	a := from("127.0.0.2")
	echoed(t, a)
	if got := refused(t, from("127.0.0.2")); got != "" {
		t.Errorf("a refused peer got %q", got)
	}
	echoed(t, from("127.0.0.3"))
	a.Close()
	<-s.closed
	echoed(t, from("127.0.0.2"))
	if n := s.l.Stats().Refused.PerIP; n != 1 {
		t.Errorf("%d refusals counted, want 1", n)
	}
}

type allow func() bool

func (a allow) Allow() bool { return a() }

func TestAcceptRateAndAdmitRefuse(t *testing.T) {
	rate, bad := true, netip.AddrPort{}
	decide := make(chan func(), 1)
	s := serveLimited(t, tcpio.ListenerOptions{
		AcceptRate: allow(func() bool { (<-decide)(); return rate }),
		Admit: func(peer netip.AddrPort) error {
			if !peer.Addr().IsLoopback() || peer.Port() == 0 {
				t.Errorf("the peer is %v", peer)
			}
			if bad.IsValid() {
				return errors.New("not you")
			}
			return nil
		},
	}, readAll)
	decide <- func() {}
	echoed(t, s.dial(t))
	decide <- func() { rate = false }
	refused(t, s.dial(t))
	decide <- func() { rate, bad = true, netip.AddrPortFrom(netip.IPv4Unspecified(), 1) }
	refused(t, s.dial(t))
	decide <- func() { bad = netip.AddrPort{} }
	echoed(t, s.dial(t))
	if r := s.l.Stats().Refused; r != (tcpio.RefusedStats{Rate: 1, Admit: 1}) {
		t.Errorf("refused: %+v", r)
	}
}

func TestStatsAddUp(t *testing.T) {
	s := serveLimited(t, tcpio.ListenerOptions{Loops: 2}, readAll)
	for range 10 {
		c := s.dial(t)
		echoed(t, c)
		c.Close()
		<-s.closed
	}
	// Closed is emitted just before the last counters are.
	for limit := time.Now().Add(limitWait); s.l.Len() > 0 && time.Now().Before(limit); time.Sleep(time.Millisecond) {
	}
	st := s.l.Stats()
	if st.Accepted != 10 || st.Closed != 10 || st.Open != 0 || st.BytesIn != 10 || st.BytesOut != 10 || len(st.Loops) != 2 {
		t.Errorf("stats: %+v", st)
	}
	var sum uint64
	for _, l := range st.Loops {
		sum += l.Events
	}
	// Opened, Readable, Readable for the end, Closed.
	if sum != st.Events || st.Events < 40 {
		t.Errorf("%d events, the loops' sum is %d", st.Events, sum)
	}
}

func TestBadLimitsAreErrorsThatNameTheField(t *testing.T) {
	for name, opts := range map[string]tcpio.ListenerOptions{
		"IdleTimeout":   {IdleTimeout: -1},
		"ReadTimeout":   {ReadTimeout: 21 * 24 * time.Hour},
		"WriteTimeout":  {WriteTimeout: -1},
		"UserTimeout":   {UserTimeout: -1},
		"MaxConns":      {MaxConns: -1},
		"MaxConnsPerIP": {MaxConnsPerIP: -1},
	} {
		opts.Addr = "127.0.0.1:0"
		if l, err := tcpio.Listen(&opts); err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
		} else if want := "tcpio: ListenerOptions." + name + ":"; len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
			t.Errorf("%s: the error is %q", name, err)
		}
	}
}
