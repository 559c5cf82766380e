// Package tlsio reads the records of TLS from a socket that does not block.
package tlsio

import (
	"errors"

	"github.com/rabbit-backend/tcpio/internal/buf"
)

const (
	header    = 5  // bytes of a record's header; RFC 8446, 5.1
	handshake = 22 // a record's type
	major     = 3  // of every version's number
)

// ErrNotTLS is the error of Hello for a client that sends something else than TLS.
var ErrNotTLS = errors.New("tcpio: the client does not speak TLS")

// Records is the sealed input of one connection. It hands out whole records only: what crypto/tls
// allocates for a record it keeps, as much as the header asks for, so it is to see a header when
// all that it promises has arrived. Until then the bytes are here, in a block of about their size.
// The zero value is ready.
//
// Methods that read call recv, which is one call of the socket's, and return its error.
type Records struct {
	b        *buf.Block // nil when there are no bytes
	off, end int        // b.Buf[off:end] has not been read
	left     int        // bytes of the record in front, once Next or Hello has found it whole
}

// Begin makes p, which was read from the socket before, the first input. It copies p. Nothing must
// have been read into r yet.
func (r *Records) Begin(pool *buf.Pool, p []byte) {
	r.b = pool.Get(max(len(p), buf.Record))
	r.end = copy(r.b.Buf, p)
}

// Left returns how many bytes Read may still take before the next call of Next.
func (r *Records) Left() int { return r.left }

// Empty reports whether nothing is buffered.
func (r *Records) Empty() bool { return r.b == nil }

// Read takes bytes of the record in front.
func (r *Records) Read(p []byte) int {
	if r.left == 0 {
		return 0
	}
	n := copy(p, r.b.Buf[r.off:r.off+r.left])
	r.off += n
	r.left -= n
	return n
}

// Next reads until the record in front is whole, and returns its size with the header. Left must be
// 0. A record that is longer than any may be, or of no version of TLS, counts as whole, as far as
// it is there: crypto/tls refuses it by its header.
func (r *Records) Next(pool *buf.Pool, recv func([]byte) (int, error)) (size int, err error) {
	for {
		if have := r.end - r.off; have >= header {
			size = header + int(r.b.Buf[r.off+3])<<8 + int(r.b.Buf[r.off+4])
			if size > buf.Record || r.b.Buf[r.off+1] != major {
				size = have
			}
			if have >= size {
				r.left = size
				return size, nil
			}
		}
		if err := r.fill(pool, recv); err != nil {
			return 0, err
		}
	}
}

// Hello is Next for the first record, which must be one of a handshake. It may be called again when
// it has succeeded.
func (r *Records) Hello(pool *buf.Pool, recv func([]byte) (int, error)) error {
	for r.left == 0 {
		if r.end == r.off {
			if err := r.fill(pool, recv); err != nil {
				return err
			}
		}
		if r.b.Buf[r.off] != handshake {
			return ErrNotTLS
		}
		if _, err := r.Next(pool, recv); err != nil {
			return err
		}
	}
	return nil
}

// fill calls recv once. It reads no further ahead than a record can be long.
func (r *Records) fill(pool *buf.Pool, recv func([]byte) (int, error)) error {
	if r.b == nil || r.end == len(r.b.Buf) {
		r.move(pool, buf.Record)
	}
	n, err := recv(r.b.Buf[r.end:])
	r.end += n
	return err
}

// Rest gives back what is not needed until the next read. The beginning of a record is kept in a
// small block, with room behind it: of a record that comes a byte at a time, a byte is copied three
// times at most.
func (r *Records) Rest(pool *buf.Pool) {
	if r.b == nil {
		return
	}
	switch have, size := r.end-r.off, len(r.b.Buf); {
	case have == 0:
		pool.Put(r.b)
		r.b, r.off, r.end = nil, 0, 0
	case have < buf.Tiny && size > buf.Tiny:
		r.move(pool, buf.Tiny)
	case have < buf.Small && size > buf.Small:
		r.move(pool, buf.Small)
	}
}

// move copies what has not been read to the front of a block of that size, or of the same block.
func (r *Records) move(pool *buf.Pool, size int) {
	b := r.b
	if b == nil || len(b.Buf) != size {
		b = pool.Get(size)
	}
	if r.b != nil {
		r.end = copy(b.Buf, r.b.Buf[r.off:r.end])
		r.off = 0
		if b != r.b {
			pool.Put(r.b)
		}
	}
	r.b = b
}

// Drop throws away what has not been read.
func (r *Records) Drop(pool *buf.Pool) {
	r.off, r.end, r.left = 0, 0, 0
	r.Rest(pool)
}
