package main

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rabbit-backend/tcpio"
)

// lookEvery is how often a connection that is not read is looked at, whether it has failed.
const lookEvery = 500 * time.Millisecond

// A pair is what the two sides share. It is over when both peers have ended, or one connection has failed,
// which the other peer sees as a reset: what it has got is not all.
type pair struct {
	ends   atomic.Int32 // sides whose peer has ended
	broken atomic.Bool  // a side takes nothing any more
}

// A side is the actor of one connection. It passes on to the other what its peer sends.
type side struct {
	pair    *pair
	other   *tcpio.Conn
	state   state
	held    []byte // read, and refused by the other
	looking bool   // a look is under way
}

type state int

const (
	paused  state = iota // until the pair is complete, and while the other is full: nothing is read
	reading              // whenever there is something
	over                 // the peer has ended, or the other takes nothing any more
)

// What is posted to a side.
type (
	room struct{} // the pair is complete, or the other has room again
	look struct{} // lookEvery is over
)

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// Receive returns nil always: behind an error the connection would be closed in order, which tells the peer
// that it has got everything.
func (s *side) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Readable:
		if s.state == reading {
			s.pass(ev.Conn)
		}
		// Not read, it is not announced again: the peer feels TCP flow control.
	case tcpio.Writable:
		_ = s.other.Post(room{}) // whoever was refused here is the other side; when that is closed, this one will be
	case tcpio.Message:
		switch ev.Value.(type) {
		case room:
			if s.state == paused {
				s.pass(ev.Conn)
			}
		case look:
			s.looking = false
			s.watch(ev.Conn)
		}
	case tcpio.Closed:
		if ev.Conn.Err() != nil {
			s.other.Abort()
		} else {
			s.other.Close()
		}
	}
	return nil
}

// pass passes on what is held and what one read finds; a Readable follows if there is more.
func (s *side) pass(c *tcpio.Conn) {
	if s.held != nil && !s.give(c, s.held) {
		return
	}
	s.held, s.state = nil, reading
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	switch n, err := c.TryRead(buf[:]); err {
	case nil:
		s.give(c, buf[:n])
	case io.EOF:
		s.end(c)
	default: // tcpio.ErrWouldBlock, and a Readable follows; or a failure, and Closed does
	}
}

// give writes p to the other side and reports whether that has taken it. If not, either it is full, and p is
// held, or it has failed.
func (s *side) give(c *tcpio.Conn, p []byte) bool {
	_, err := s.other.TryWrite(p)
	switch {
	case err == nil:
		return true
	case !errors.Is(err, tcpio.ErrWouldBlock):
		// What its peer had said before may still be unread. So its own side, which reads it, ends the pair
		// when it meets the failure behind that; but once that side has read the end, it reads no more.
		s.held, s.state = nil, over
		if s.pair.broken.Store(true); s.pair.ends.Load() > 0 {
			s.abort(c)
		}
	case s.held == nil:
		s.held, s.state = bytes.Clone(p), paused
		s.watch(c)
	}
	return false
}

// end passes on the peer's end of stream. When both have ended the pair is over.
func (s *side) end(c *tcpio.Conn) {
	s.state = over
	switch ends := s.pair.ends.Add(1); {
	case s.pair.broken.Load():
		s.abort(c)
	case ends == 2:
		s.other.Close()
		c.Close()
	default:
		_ = s.other.CloseWrite() // an error is told by Closed, too
	}
}

func (s *side) abort(c *tcpio.Conn) {
	s.other.Abort()
	c.Abort()
}

// watch looks after a connection while something of it is held. Who does not read a connection is not told of
// its reset: the Readable that says so is the one that was not answered. Without a look the pair of a client
// that is gone would stay for as long as the upstream takes nothing.
func (s *side) watch(c *tcpio.Conn) {
	switch {
	case s.held == nil || s.looking:
	case failed(c):
		c.Abort() // Closed brings the other down
	default:
		s.looking = true
		c.After(lookEvery, look{})
	}
}

// failed asks whether c was reset or has timed out: the kernel, or tcpio, which the kernel may have told behind the bytes that
// are held, and which then says so here. The peer's end in order is no failure, nor is unread input.
func failed(c *tcpio.Conn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false // closed already
	}
	var events int16
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}} // POLLERR is told unasked
		if _, err := unix.Poll(p, 0); err == nil {
			events = p[0].Revents
		}
		return true
	})
	return err != nil || events&unix.POLLERR != 0
}
