package tcpio

import (
	"bufio"
	"errors"
	"io"
	"iter"
	"time"
)

// errFramesBusy is what a second, concurrent iteration gets.
var errFramesBusy = errors.New("tcpio: Conn.Frames: an iteration is running already")

const (
	// An iteration hands out so many frames, or so many bytes of them and of what split skips, or
	// goes on for so long, and leaves the rest to the next: a peer that never stops sending would
	// keep its consumer from all others.
	framesMost     = 1024
	frameBytesMost = 256 << 10
	frameTimeMost  = 10 * time.Millisecond
	framesLook     = 16 // calls of split between two looks at the clock
)

// Frames iterates over the complete frames of what is readable, as split cuts them, without
// blocking. It ends by itself when no whole frame is left: a partial one is kept, in a pooled
// buffer, and a Readable follows when more has arrived. It also ends behind 1,024 frames, behind
// 256 KiB of them and of what split skips, and after 10 ms, so that a peer that never stops sending
// leaves others their turn, and behind a break: the rest is kept and a Readable follows at once.
// What is kept comes first in a later TryRead or Read. A connection that has no route yet gets no
// Readable: its frames are handed out until none is left.
//
// What a loop leaves behind a break is not lost: the next Frames or read begins there, and StartTLS
// takes it as the peer's handshake.
//
// A frame is valid until the next iteration; it is then overwritten. Until then it may be changed
// in place, and append copies it, since its capacity is its length. An error is the last pair:
// io.EOF at the peer's end of stream, where split is called with atEOF first; io.ErrUnexpectedEOF
// when the end cuts a frame, also if split says so; an error that matches bufio.ErrTooLong and
// names the limit when a frame exceeds [ListenerOptions.MaxFrame] bytes, and whatever else split
// returns, both of which close the connection with that error, behind what the body writes about
// it; otherwise what TryRead returns. LengthSplitter and LineSplitter are for binary protocols and
// for lines. bufio.ErrFinalToken ends the iteration as in bufio.Scanner. A split that skips bytes
// without a frame is called again with the rest.
//
// split is called without a lock. One goroutine at a time may iterate; a second one gets an error,
// and while split runs another goroutine's read gets ErrWouldBlock.
func (c *Conn) Frames(split bufio.SplitFunc) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if err := c.beginFrames(); err != nil {
			yield(nil, err)
			return
		}
		defer c.endFrames()
		fail := func(err error) {
			c.noteFrameError(err)
			defer c.closeForFrame(err) // also when the body panics
			yield(nil, err)            // it may still write what is wrong
		}
		empty, frames, size, start := 0, 0, 0, now()
		for turn := 1; ; turn++ {
			late := turn%framesLook == 0 && now()-start >= int64(frameTimeMost)
			if (late || frames >= framesMost || size >= frameBytesMost) && c.leaveFrames() {
				return
			}
			data, atEOF, err := c.frameData()
			if err != nil {
				yield(nil, err)
				return
			}
			advance, token := 0, []byte(nil)
			if len(data) > 0 || atEOF {
				advance, token, err = split(data, atEOF)
			}
			switch {
			case err == bufio.ErrFinalToken:
				c.advanceFrames(min(max(advance, 0), len(data)))
				if atEOF { // split has seen the end and says that it is done
					c.endOfFrames(true)
				}
				if token != nil {
					yield(token[:len(token):len(token)], nil)
				}
				return
			case err == io.ErrUnexpectedEOF && atEOF:
				advance, token, err = 0, nil, nil // the end is reported below
			case err == nil:
				err = c.checkCut(advance, len(data), token != nil)
			}
			if err != nil {
				fail(err)
				return
			}
			c.advanceFrames(advance)
			size += advance
			if token != nil {
				if empty++; advance > 0 {
					empty = 0
				}
				if empty > 100 {
					fail(io.ErrNoProgress)
					return
				}
				frames++
				if !yield(token[:len(token):len(token)], nil) {
					return
				}
				continue
			}
			if advance > 0 {
				continue
			}
			if atEOF {
				c.endOfFrames(len(data) > 0)
				if err = io.EOF; len(data) > 0 {
					err = io.ErrUnexpectedEOF
				}
				yield(nil, err)
				return
			}
			more, reads, err := c.readFrames()
			if reads > 1 {
				turn |= framesLook - 1 // the clock is due
			}
			if _, tooLong := err.(*tooLongError); tooLong {
				fail(err)
			} else if err != nil {
				yield(nil, err)
			}
			if !more {
				return
			}
		}
	}
}

// checkCut returns what is wrong with a result of split that consumed advance of size bytes.
func (c *Conn) checkCut(advance, size int, frame bool) error {
	switch {
	case advance < 0:
		return bufio.ErrNegativeAdvance
	case advance > size:
		return bufio.ErrAdvanceTooFar
	case frame && advance > c.sh.opts.MaxFrame:
		return &tooLongError{"MaxFrame", c.sh.opts.MaxFrame}
	}
	return nil
}

// endOfFrames notes that split has seen the end of stream. What is left then is partial: nothing
// will complete it, so it is not announced again.
func (c *Conn) endOfFrames(left bool) {
	c.mu.Lock()
	c.ext.frames.partial = left
	c.unlock()
	c.noteEnd()
}

// readFrames reads more behind the partial frame, a large one in as many reads as readOnFrames
// wants. It reports false when there is no more for the moment, and how many reads it made.
func (c *Conn) readFrames() (more bool, reads int, err error) {
	for reads = 1; ; reads++ {
		if more, err = c.fillFrames(); err != nil {
			return false, reads, err
		}
		if !more || reads == framesLook || !c.readOnFrames() {
			return more || reads > 1, reads, nil
		}
	}
}

// beginFrames claims the buffer for one iterator.
func (c *Conn) beginFrames() error {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return c.endedLocked("read")
	}
	if c.relayed() {
		return c.relayedLocked("read")
	}
	f := &c.extLocked().frames
	if f.busy {
		return errFramesBusy
	}
	if c.announced() && f.since != 0 { // the time for which the next bytes have waited does not count
		f.since += max(c.sh.coarse()-max(f.offered, f.since), 0)
	}
	// An outstanding Readable is what an edge since then was merged into, so none will say what the
	// socket holds.
	f.busy, f.more, f.emptied = true, c.announced() && !c.atEOF(), false
	return nil
}

// endFrames lets go of the buffer and sees to it that what is left is announced: unread frames, or
// more in the socket.
func (c *Conn) endFrames() {
	c.mu.Lock()
	defer c.unlock()
	f := &c.ext.frames
	f.busy, f.split = false, false
	more := f.more
	if c.ended() || f.Len() == 0 {
		f.drop(&c.sh.pool)
	}
	if c.ended() {
		return
	}
	if f.partial {
		if f.since == 0 {
			f.since = c.sh.coarse()
		}
		c.armLimitLocked()
	}
	if more || f.Held() && !f.partial || c.peerEnd == peerRead {
		c.moreLocked()
	}
	f.Shrink(&c.sh.pool)
}

// leaveFrames reports whether an iteration that has had its share is to end: not where no Readable
// would begin the next one.
func (c *Conn) leaveFrames() bool {
	c.mu.Lock()
	defer c.unlock()
	if !c.isClaimed() {
		return false
	}
	f := &c.ext.frames
	f.more = f.more || !f.emptied // the socket may hold something, since nobody has looked
	return true
}

// frameData is what there is to split. The bytes stay in place until fillFrames or endFrames.
func (c *Conn) frameData() (data []byte, atEOF bool, err error) {
	c.mu.Lock()
	defer c.unlock()
	if c.ended() {
		return nil, false, c.endedLocked("read")
	}
	if c.relayed() { // by the body of the loop: what is left goes to the other connection
		return nil, false, c.relayedLocked("read")
	}
	f := &c.ext.frames
	f.partial, f.split = false, true
	return f.Bytes(), c.atEOF(), nil
}

func (c *Conn) advanceFrames(n int) {
	c.mu.Lock()
	defer c.unlock()
	f := &c.ext.frames
	f.Skip(n)
	if n > 0 {
		f.since, f.late = 0, false // another frame begins
	}
	f.split = false
}

// noteFrameError notes err as the connection's Err, also if the body of the loop closes it.
func (c *Conn) noteFrameError(err error) {
	c.mu.Lock()
	defer c.unlock()
	c.ext.frames.split = false
	if !c.ended() && c.ext.err == nil {
		c.ext.err = err
	}
}

// closeForFrame closes the connection because a frame is bad: err says what is wrong with it.
func (c *Conn) closeForFrame(err error) {
	c.mu.Lock()
	c.closeLocked(err)
	c.unlock()
}

// readOnFrames reports whether to read more of a large partial frame before the next call of split,
// until the buffer is full or the socket is empty. Without that, split would look at the whole
// frame again behind each part that the socket hands out.
func (c *Conn) readOnFrames() bool {
	c.mu.Lock()
	defer c.unlock()
	f := &c.ext.frames
	return f.more && !f.Full() && f.Len() >= recvMax
}

// fillFrames reads more behind the partial frame. It reports false when there is no more for the
// moment.
func (c *Conn) fillFrames() (more bool, err error) {
	c.mu.Lock()
	if c.ended() {
		err := c.endedLocked("read")
		c.unlock()
		return false, err
	}
	if c.relayed() {
		err := c.relayedLocked("read")
		c.unlock()
		return false, err
	}
	f := &c.ext.frames
	limit := c.sh.opts.MaxFrame
	have := f.Len()
	if have > limit {
		c.unlock()
		return false, &tooLongError{"MaxFrame", limit}
	}
	if f.emptied && !c.announced() {
		f.partial = have > 0
		c.unlock()
		return false, nil // no edge since the last read: there is nothing
	}
	if err := c.makeRoomLocked(limit); err != nil {
		c.unlock()
		return false, err
	}
	room := f.Room()
	room = room[:min(len(room), recvMax)]
	n, err := c.inputLocked(room)
	f.Filled(n)
	f.emptied = err == ErrWouldBlock || n > 0 && n < len(room) && !c.sock.has(sockUnsure)
	f.more = n > 0 && !f.emptied
	switch {
	case f.more:
	case err == nil || err == ErrWouldBlock:
		c.emptiedLocked()
	case err == io.EOF:
		if c.leaveEndLocked() {
			err = ErrWouldBlock
			break
		}
		c.emptiedLocked()
		reach(&c.peerEnd, peerRead)
		err = nil // split sees it first, and what it makes of the rest; then see noteEnd
	default:
		c.todo.add(todoReadErr)
	}
	if err == ErrWouldBlock {
		f.partial = have > 0
	}
	c.askHelpLocked()
	c.unlock()
	if err == ErrWouldBlock {
		return false, nil
	}
	return err == nil, err
}

// makeRoomLocked leaves room behind the unread bytes. What moves may be as large as MaxFrame, at
// most a gigabyte, so mu is given up meanwhile; split keeps others out.
func (c *Conn) makeRoomLocked(limit int) error {
	f := &c.ext.frames
	if !f.Full() {
		return nil
	}
	w := f.Window
	f.split = true
	c.unlock()
	w = w.Widened(&c.sh.pool, limit)
	c.mu.Lock()
	f.split = false
	f.Window = w
	if c.ended() {
		return c.endedLocked("read")
	}
	return nil
}
