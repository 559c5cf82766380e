package main

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"

	"github.com/rabbit-backend/tcpio"
)

// A pair is what the two sides share.
type pair struct {
	ends atomic.Int32 // sides whose peer has ended
}

// A side is the actor of one connection. It passes on to the other what its peer sends.
type side struct {
	pair  *pair
	other *tcpio.Conn
	held  []byte // read, and refused by the other, which is full; nothing more is read meanwhile
	ended bool   // the peer has
}

// room is posted to a side whose other has room again.
type room struct{}

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

func (s *side) Receive(ev tcpio.Event) error {
	switch ev := ev.(type) {
	case tcpio.Readable:
		if s.held == nil {
			return s.pass(ev.Conn)
		}
		// Not read, it is not announced again: the peer feels TCP flow control.
	case tcpio.Writable:
		return s.other.Post(room{}) // whoever was refused here is the other side
	case tcpio.Message:
		if s.held != nil {
			return s.pass(ev.Conn)
		}
	case tcpio.Closed:
		if ev.Conn.Err() != nil {
			s.other.Abort() // a reset is passed on as one: what has arrived is not all
		} else {
			s.other.Close()
		}
	}
	return nil
}

// pass passes on what is held and what one read finds; a Readable follows if there is more.
func (s *side) pass(c *tcpio.Conn) error {
	if s.held != nil {
		if _, err := s.other.TryWrite(s.held); err != nil {
			return ignoreFull(err)
		}
		s.held = nil
	}
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	n, err := c.TryRead(buf[:])
	switch {
	case err == io.EOF:
		return s.end(c)
	case err != nil:
		return ignoreFull(err)
	}
	if _, err := s.other.TryWrite(buf[:n]); err != nil {
		s.held = bytes.Clone(buf[:n])
		return ignoreFull(err)
	}
	return nil
}

// end passes on the peer's end of stream. When both have ended the pair is over.
func (s *side) end(c *tcpio.Conn) error {
	if s.ended {
		return nil
	}
	s.ended = true
	if s.pair.ends.Add(1) == 2 {
		s.other.Close()
		return c.Close()
	}
	return s.other.CloseWrite()
}

// ignoreFull leaves errors: for ErrWouldBlock there will be an event.
func ignoreFull(err error) error {
	if err == tcpio.ErrWouldBlock {
		return nil
	}
	return err
}
