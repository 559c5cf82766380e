package tcpio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/rabbit-backend/tcpio/internal/buf"
)

// What a tlsLink does, but for Read, which blocks while the handshake runs: see handshake.go.

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

// errTruncated is an end of stream without close_notify.
var errTruncated = fmt.Errorf("tcpio: TLS connection ended without close_notify: %w",
	io.ErrUnexpectedEOF)

// repliesMax bounds the answers to key updates, in bytes, that a peer may ask for without reading
// them: over two thousand answers.
const repliesMax = 64 << 10

// errReplies ends a connection whose peer asks for ever more and reads nothing.
var errReplies = errors.New("tcpio: the peer asks for TLS key updates and does not read them")

const (
	// recordBudget is how many records one read takes in. A key update costs some 20 µs with its
	// answer, so that a peer that sends nothing else holds its connection's mu, and the loop, for
	// 1 to 2 ms.
	recordBudget = 64
	// silentMax is how many bytes of records in a row may bring no plain text and still be followed
	// by another record: key updates, records without data, and parts of a message, of which
	// crypto/tls would keep 256 KiB. It is one record of the largest size, so that at most two such
	// records are kept for a message.
	silentMax = buf.Record
)

// errSilent ends a connection whose peer sends more than silentMax without plain text.
var errSilent = errors.New("tcpio: the peer sends TLS records without data")

// errAgain is what tlsLink returns instead of blocking. It is a temporary net.Error, after which
// crypto/tls goes on.
const errAgain = syscall.EAGAIN
