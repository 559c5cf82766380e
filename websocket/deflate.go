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

// An unpacker is what decompresses a message.
type unpacker struct {
	src bytes.Reader
	r   *wsflate.Reader
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

// inflate decompresses a message (RFC 7692, 7.2.2), up to limit bytes of it. The code is 0, or
// MessageTooBig, or InvalidPayload.
func inflate(p []byte, limit int) (z *buffer, code Code) {
	z = newBuffer()
	u := unpackers.Get().(*unpacker)
	defer unpackers.Put(u)
	u.src.Reset(p)
	u.r.Reset(&u.src)
	for {
		if len(z.b) == cap(z.b) {
			z.b = grown(z.b, max(512, min(len(p)*2, keepMost)))
		}
		n, err := u.r.Read(z.b[len(z.b):cap(z.b)])
		z.b = z.b[:len(z.b)+n]
		switch {
		case len(z.b) > limit:
			return z, MessageTooBig
		case err == io.EOF:
			return z, 0
		case err != nil:
			return z, InvalidPayload
		}
	}
}
