package tcpio

import (
	"io"
	"net"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
	"github.com/rabbit-backend/tcpio/internal/quota"
)

// tlsLink is the net.Conn below a tls.Conn. While the handshake runs it blocks and takes the connection's mu; afterwards
// it does not block and the caller has mu.
//
// It hands out whole records only. What crypto/tls allocates for a record it keeps, as much as the header asks for, so
// it is to see a header when the peer has sent all that it promises; until then the bytes are here, in a buffer of about
// their size. And records can be counted.
type tlsLink struct {
	c    *Conn
	turn *quota.Turn // of the handshake, which alone changes it; nil afterwards

	b        *buf.Block // sealed input, nil when there is none
	off, end int        // b.Buf[off:end] is for crypto/tls
	left     int        // of the record in front, if that has arrived whole and has been begun
	records  int        // records that the running read may still take in
	silent   int        // bytes of records since plain text came
}

func (t *tlsLink) Read(p []byte) (int, error) {
	c := t.c
	if t.turn == nil {
		n, err := t.takeLocked(p)
		return n, t.cause(err)
	}
	for {
		c.mu.Lock()
		if c.ended() {
			c.unlock()
			return 0, net.ErrClosed
		}
		t.records, t.silent = 1, 0 // crypto/tls has bounds of its own for a handshake
		n, err := t.takeLocked(p)
		if err != ErrWouldBlock {
			c.unlock()
			return n, t.cause(err)
		}
		t.restLocked()
		opened := c.ext.canRead.Enter()
		c.unlock()
		if !t.turn.Wait(opened) { // opened: bytes, the end, or HandshakeTimeout
			c.mu.Lock()
			c.handshakeTimedOutLocked()
			c.unlock()
		}
	}
}

// takeLocked moves bytes of one record to p.
func (t *tlsLink) takeLocked(p []byte) (int, error) {
	if t.left == 0 {
		if t.records == 0 {
			return 0, ErrWouldBlock
		}
		if err := t.recordLocked(); err != nil {
			return 0, err
		}
		if t.silent > silentMax {
			t.left = 0
			return 0, errSilent
		}
		t.records--
		t.silent += t.left
	}
	n := copy(p, t.b.Buf[t.off:t.off+t.left])
	t.off += n
	t.left -= n
	return n, nil
}

// recordLocked reads until the record in front is whole. One that is longer than any may be is handed out as far as it
// is there: crypto/tls refuses it by its header.
func (t *tlsLink) recordLocked() error {
	for {
		if have := t.end - t.off; have >= recordHeader {
			n := int(t.b.Buf[t.off+3])<<8 + int(t.b.Buf[t.off+4])
			if n > recordMax {
				t.left = have
				return nil
			}
			if have >= recordHeader+n {
				t.left = recordHeader + n
				return nil
			}
		}
		if err := t.fillLocked(); err != nil {
			return err
		}
	}
}

// fillLocked is one recv. It reads no further ahead than a record can be long.
func (t *tlsLink) fillLocked() error {
	c := t.c
	if c.released() {
		return net.ErrClosed // by what crypto/tls wrote meanwhile
	}
	have := t.end - t.off
	switch {
	case t.b == nil:
		t.b = c.sh.pool.Get(buf.Record)
	case t.end == len(t.b.Buf):
		b := t.b
		if len(b.Buf) < buf.Record {
			b = c.sh.pool.Get(buf.Record)
		}
		copy(b.Buf, t.b.Buf[t.off:t.end])
		if b != t.b {
			c.sh.pool.Put(t.b)
			t.b = b
		}
		t.off, t.end = 0, have
	}
	n, err := c.recvLocked(t.b.Buf[t.end:])
	t.end += n
	return err
}

// restLocked gives back what is not needed until the next read. The beginning of a record is kept in a small buffer, with
// room behind it: a record that comes a byte at a time is copied twice, not for every byte.
func (t *tlsLink) restLocked() {
	if t.b == nil {
		return
	}
	have, pool := t.end-t.off, &t.c.sh.pool
	var b *buf.Block
	switch size := len(t.b.Buf); {
	case have == 0:
	case have < buf.Tiny && size > buf.Tiny:
		b = pool.Get(buf.Tiny)
	case have < buf.Small && size > buf.Small:
		b = pool.Get(buf.Small)
	default:
		return
	}
	if b != nil {
		copy(b.Buf, t.b.Buf[t.off:t.end])
	}
	pool.Put(t.b)
	t.b, t.off, t.end = b, 0, have
}

// dropLocked throws away what has not been decrypted.
func (t *tlsLink) dropLocked() {
	t.off, t.end, t.left = 0, 0, 0
	t.restLocked()
}

// cause is a read error as crypto/tls has to see it: it takes a bare io.EOF between two records for an orderly end.
func (t *tlsLink) cause(err error) error {
	switch err {
	case ErrWouldBlock:
		return errAgain
	case io.EOF:
		return errTruncated
	}
	return err
}

func (t *tlsLink) Write(p []byte) (int, error) {
	c := t.c
	if t.turn != nil {
		c.mu.Lock()
		defer c.unlock()
	}
	st := c.ext.tls
	if st.reading {
		if c.out == nil {
			st.replied = 0
		}
		if st.replied += len(p); st.replied > repliesMax {
			return 0, errReplies
		}
	}
	if t.turn == nil {
		st.sealed += int64(len(p))
	}
	if err := c.rawWriteLocked(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *tlsLink) Close() error                     { return nil }
func (t *tlsLink) LocalAddr() net.Addr              { return t.c.LocalAddr() }
func (t *tlsLink) RemoteAddr() net.Addr             { return t.c.RemoteAddr() }
func (t *tlsLink) SetDeadline(time.Time) error      { return nil }
func (t *tlsLink) SetReadDeadline(time.Time) error  { return nil }
func (t *tlsLink) SetWriteDeadline(time.Time) error { return nil }
