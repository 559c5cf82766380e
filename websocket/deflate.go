package websocket

import (
	"bytes"
	"compress/flate"
	"io"
	"sync"

	"github.com/gobwas/ws/wsflate"
)

// keepMost is the capacity up to which a buffer goes back to its pool, in bytes.
const keepMost = 80 << 10

// A buffer is bytes from a pool.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func newBuffer() *buffer {
	z := buffers.Get().(*buffer)
	z.b = z.b[:0]
	return z
}

// free gives the buffer back. A nil one may be freed too.
func (z *buffer) free() {
	if z != nil && cap(z.b) <= keepMost {
		buffers.Put(z)
	}
}

// Write appends p.
func (z *buffer) Write(p []byte) (int, error) {
	z.b = append(z.b, p...)
	return len(p), nil
}

var packers = sync.Pool{New: func() any {
	return wsflate.NewWriter(nil, func(w io.Writer) wsflate.Compressor {
		f, _ := flate.NewWriter(w, flate.BestSpeed) // no error for this level
		return f
	})
}}

// deflate compresses p as a message (RFC 7692, 7.2.1).
func deflate(p []byte) *buffer {
	z := newBuffer()
	w := packers.Get().(*wsflate.Writer)
	defer packers.Put(w)
	w.Reset(z)
	_, _ = w.Write(p) // neither a buffer nor flate fails
	_ = w.Flush()
	return z
}

// An unpacker decompresses a message, a part at a time.
type unpacker struct {
	src bytes.Reader
	r   *wsflate.Reader
	z   *buffer // what there is of the message
}

var unpackers = sync.Pool{New: func() any {
	u := new(unpacker)
	u.r = wsflate.NewReader(&u.src, func(r io.Reader) wsflate.Decompressor {
		return resettable{flate.NewReader(r)}
	})
	return u
}}

// resettable is flate's reader with the Reset that wsflate looks for.
type resettable struct{ io.ReadCloser }

func (r resettable) Reset(src io.Reader) {
	_ = r.ReadCloser.(flate.Resetter).Reset(src, nil) // it has no error
}

// unpack begins to decompress p, a message (RFC 7692, 7.2.2).
func unpack(p []byte) *unpacker {
	u := unpackers.Get().(*unpacker)
	u.src.Reset(p)
	u.r.Reset(&u.src)
	u.z = newBuffer()
	u.z.b = grown(u.z.b, max(512, min(2*len(p), keepMost)))
	return u
}

// inflateTurn is how much a turn decompresses, in bytes: then others have theirs, since a few bytes
// can become very many.
const inflateTurn = 256 << 10

// inflate goes on until the message is whole, or has grown by inflateTurn. It fails with
// MessageTooBig behind limit bytes, and with InvalidPayload.
func (u *unpacker) inflate(limit int) (done bool, code Code) {
	z := u.z
	for end := len(z.b) + inflateTurn; len(z.b) < end; {
		if len(z.b) == cap(z.b) {
			z.b = grown(z.b, 512)
		}
		n, err := u.r.Read(z.b[len(z.b):min(cap(z.b), end)])
		z.b = z.b[:len(z.b)+n]
		switch {
		case len(z.b) > limit:
			return false, MessageTooBig
		case err == io.EOF:
			return true, 0
		case err != nil:
			return false, InvalidPayload
		}
	}
	return false, 0
}

// keep makes u independent of the memory that unpack was called with.
func (u *unpacker) keep() {
	rest := make([]byte, u.src.Len())
	_, _ = u.src.Read(rest) // it has so many
	u.src.Reset(rest)
}

func (u *unpacker) free() {
	u.src.Reset(nil)
	u.z.free()
	u.z = nil
	unpackers.Put(u)
}
