package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

const request = "GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"

// A loader is the client's side of a run: one thread with epoll, so that it costs as little as it
// can. It checks every byte that comes back.
type loader struct {
	mode    string
	frame   []byte // what a client sends
	answer  []byte // what it gets
	addr    unix.SockaddrInet4
	ep      int
	conns   []loadConn
	dials   int // under way
	ready   int // connections whose handshake is done
	heard   int // members that have the group's message
	rounds  int // messages of the group that all members have
	buf     []byte
	took    []time.Duration
	counted bool
}

type loadConn struct {
	fd    int
	state loadState
	head  []byte // of the handshake's answer
	left  []byte // what is still to be sent
	got   int    // bytes of the answer
	start time.Time
}

type loadState uint8

const (
	absent loadState = iota
	connecting
	shaking
	talking
)

// load is the part of the program that drives a server; it prints "warm" when the measured time
// begins, and a line of JSON when it ends.
func load(args []string) error {
	f := flag.NewFlagSet("load", flag.ExitOnError)
	addr := f.String("addr", "", "server's address")
	l := new(loader)
	f.StringVar(&l.mode, "mode", "echo", "echo, group or connect")
	n := f.Int("conns", 64, "connections")
	size := f.Int("size", 64, "of a message")
	raw := f.Bool("raw", false, "the server sends back what it gets, and knows no frames")
	seconds := f.Float64("seconds", 1, "measured")
	warm := f.Float64("warm", 0.3, "before that")
	_ = f.Parse(args)

	at, err := netip.ParseAddrPort(*addr)
	if err != nil {
		return err
	}
	l.addr = unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	payload := make([]byte, *size)
	for i := range payload {
		payload[i] = byte(rand.Uint32())
	}
	plain := ws.NewBinaryFrame(payload)
	masked := ws.MaskFrameWith(plain, [4]byte{1, 2, 3, 4})
	if l.frame, err = ws.CompileFrame(masked); err != nil {
		return err
	}
	l.answer, err = ws.CompileFrame(ws.NewBinaryFrame(payload))
	if err != nil {
		return err
	}
	if *raw {
		l.answer = l.frame
		if l.mode == "group" { // as many bytes as a server's frame has
			l.frame = l.frame[:len(l.frame)-4]
			l.answer = l.frame
		}
	}
	l.buf = make([]byte, 256<<10)
	runtime.LockOSThread()
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	l.conns = make([]loadConn, *n)
	if err := l.connectAll(); err != nil {
		return err
	}
	if l.mode == "group" {
		err = l.beginGroup()
	} else {
		for i := range l.conns {
			if err == nil {
				err = l.begin(&l.conns[i])
			}
		}
	}
	if err != nil {
		return err
	}
	if err := l.until(time.Now().Add(time.Duration(*warm * 1e9))); err != nil {
		return err
	}
	l.counted, l.took = true, make([]time.Duration, 0, 1<<20)
	fmt.Println("warm")
	began := time.Now()
	err = l.until(began.Add(time.Duration(*seconds * 1e9)))
	for err == nil && len(l.took) == 0 && time.Since(began) < time.Minute { // one that takes longer than the time
		err = l.until(time.Now().Add(10 * time.Millisecond))
	}
	if err != nil {
		return err
	}
	r := figures{Requests: len(l.took), Seconds: time.Since(began).Seconds()}
	if len(l.took) == 0 {
		return errors.New("no request was answered")
	}
	slices.Sort(l.took)
	at99 := func(q float64) float64 { return float64(l.took[int(q*float64(len(l.took)-1))].Nanoseconds()) / 1e3 }
	r.P50, r.P99, r.P999 = at99(0.5), at99(0.99), at99(0.999)
	return json.NewEncoder(os.Stdout).Encode(r)
}

// connectAll makes the connections, some at a time, since the server's backlog is finite.
func (l *loader) connectAll() error {
	end := time.Now().Add(time.Minute)
	for next := 0; l.ready < len(l.conns); {
		for ; l.dials < 128 && next < len(l.conns); next++ {
			if err := l.connect(next); err != nil {
				return err
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("only %d connections in a minute", l.ready)
		}
		if err := l.poll(100); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) connect(i int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	// No port of a closed connection has to wait.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	l.conns[i] = loadConn{fd: fd, state: connecting, start: time.Now()}
	l.dials++
	if err := unix.Connect(fd, &l.addr); err != nil && err != unix.EINPROGRESS {
		return err
	}
	return unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd,
		&unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(i)})
}

// beginGroup sends the group's first message. A server may make a connection a member a moment
// after it has answered the handshake, and then it misses that: after a while there is another.
func (l *loader) beginGroup() error {
	for end := time.Now().Add(time.Minute); l.rounds == 0; {
		if time.Now().After(end) {
			return fmt.Errorf("%d of %d members have the group's message", l.heard, len(l.conns))
		}
		l.heard = 0
		if err := l.begin(&l.conns[0]); err != nil {
			return err
		}
		for again := time.Now().Add(2 * time.Second); l.rounds == 0 && time.Now().Before(again); {
			if err := l.poll(10); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *loader) until(end time.Time) error {
	for time.Now().Before(end) {
		if err := l.poll(10); err != nil {
			return err
		}
	}
	return nil
}

var loadEvents [512]unix.EpollEvent

func (l *loader) poll(ms int) error {
	n, err := unix.EpollWait(l.ep, loadEvents[:], ms)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return err
	}
	now := time.Now()
	for _, ev := range loadEvents[:n] {
		if err := l.drive(int(ev.Fd), now); err != nil {
			return fmt.Errorf("connection %d: %w", ev.Fd, err)
		}
	}
	return nil
}

// begin sends a request.
func (l *loader) begin(c *loadConn) error {
	c.got, c.start, c.left = 0, time.Now(), l.frame
	return c.flush()
}

func (c *loadConn) flush() error {
	for len(c.left) > 0 {
		n, err := unix.Write(c.fd, c.left)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
		c.left = c.left[n:]
	}
	return nil
}

// drive does what an edge of connection i makes possible.
func (l *loader) drive(i int, now time.Time) error {
	c := &l.conns[i]
	if c.state == connecting {
		c.state, c.left = shaking, []byte(request+"\r\n")
	}
	if err := c.flush(); err != nil {
		return err
	}
	for {
		n, err := unix.Read(c.fd, l.buf)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err != nil:
			return err
		case n == 0:
			return errors.New("the server has closed it")
		}
		if err := l.arrived(i, l.buf[:n], now); err != nil || n < len(l.buf) {
			return err
		}
	}
}

// arrived handles what has come on connection i.
func (l *loader) arrived(i int, p []byte, now time.Time) error {
	c := &l.conns[i]
	if c.state == shaking {
		c.head = append(c.head, p...)
		end := bytes.Index(c.head, []byte("\r\n\r\n")) + 4
		if end < 4 {
			return nil
		}
		if !bytes.HasPrefix(c.head, []byte("HTTP/1.1 101 ")) || end < len(c.head) {
			return fmt.Errorf("the handshake's answer is %q", c.head)
		}
		c.head, c.state = nil, talking
		l.dials--
		if l.ready++; l.mode == "connect" && l.ready > len(l.conns) {
			c.got, c.left = 0, l.frame
			return c.flush()
		}
		return nil
	}
	for len(p) > 0 {
		n := min(len(p), len(l.answer)-c.got)
		if !bytes.Equal(p[:n], l.answer[c.got:c.got+n]) {
			return fmt.Errorf("wrong bytes at %d of the answer", c.got)
		}
		p = p[n:]
		if c.got += n; c.got < len(l.answer) {
			return nil
		}
		if err := l.answered(i, now); err != nil {
			return err
		}
		if l.mode == "connect" && len(p) > 0 {
			return errors.New("more than an answer")
		}
	}
	return nil
}

// answered notes that connection i has its answer, and goes on.
func (l *loader) answered(i int, now time.Time) error {
	c := &l.conns[i]
	start := c.start
	if l.mode == "group" {
		c.got = 0
		if l.heard++; l.heard < len(l.conns) {
			return nil
		}
		l.heard = 0
		l.rounds++
		c = &l.conns[0]
		start = c.start
	}
	if l.counted {
		l.took = append(l.took, now.Sub(start))
	}
	if l.mode == "connect" {
		unix.Close(c.fd)
		return l.connect(i)
	}
	return l.begin(c)
}
