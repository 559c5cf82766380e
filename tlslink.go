package tcpio

import (
	"io"
	"net"
	"time"

	"github.com/rabbit-backend/tcpio/internal/quota"
	"github.com/rabbit-backend/tcpio/internal/tlsio"
)

// tlsLink is the net.Conn below a tls.Conn. While the handshake runs, Read blocks, and Read and
// Write take the connection's mu. Afterwards they do not block, and the caller has mu.
type tlsLink struct {
	c    *Conn
	turn *quota.Turn // of the handshake, which alone changes it; nil afterwards

	in      tlsio.Records
	records int // records that the running read may still begin
	silent  int // bytes of records since plain text came
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
	if t.in.Left() == 0 {
		switch {
		case t.records == 0:
			return 0, ErrWouldBlock
		case t.c.released():
			return 0, net.ErrClosed // by a write of crypto/tls
		}
		size, err := t.in.Next(&t.c.sh.pool, t.c.recvLocked)
		if err != nil {
			return 0, err
		}
		if t.silent > silentMax {
			t.dropLocked()
			return 0, errSilent
		}
		t.records--
		t.silent += size
	}
	return t.in.Read(p), nil
}

// helloLocked reads until the first record is whole: before that a handshake has no goroutine.
func (t *tlsLink) helloLocked() error {
	err := t.in.Hello(&t.c.sh.pool, t.c.recvLocked)
	t.restLocked()
	if err == io.EOF {
		return errTruncated
	}
	return err
}

func (t *tlsLink) restLocked() { t.in.Rest(&t.c.sh.pool) }

// dropLocked throws away what has not been decrypted.
func (t *tlsLink) dropLocked() { t.in.Drop(&t.c.sh.pool) }

// cause is a read error as crypto/tls has to see it: it takes a bare io.EOF between two records for
// an orderly end.
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
