package tcpio

import (
	"sync"
	"sync/atomic"
)

// Blocks of four sizes hold what is queued for output, partial frames, TLS records and drained input; idle connections hold
// none.
const (
	blockTiny   = 512
	blockSmall  = 4 << 10
	blockRecord = recordHeader + recordMax
	blockLarge  = 64 << 10
)

// A block is a reference-counted buffer. The last reference gives it back to its pool.
type block struct {
	refs atomic.Int32
	buf  []byte
}

// pool hands out blocks; the zero value works. Blocks of other sizes are left to the collector.
type pool struct {
	tiny, small, record, large sync.Pool
}

// get returns a block of at least size bytes, with one reference.
func (p *pool) get(size int) *block {
	var b *block
	switch {
	case size == blockTiny: // exactly, and so blockRecord: for TLS records
		if b, _ = p.tiny.Get().(*block); b == nil {
			b = &block{buf: make([]byte, blockTiny)}
		}
	case size <= blockSmall:
		if b, _ = p.small.Get().(*block); b == nil {
			b = &block{buf: make([]byte, blockSmall)}
		}
	case size == blockRecord:
		if b, _ = p.record.Get().(*block); b == nil {
			b = &block{buf: make([]byte, blockRecord)}
		}
	case size <= blockLarge:
		if b, _ = p.large.Get().(*block); b == nil {
			b = &block{buf: make([]byte, blockLarge)}
		}
	default:
		b = &block{buf: make([]byte, size)}
	}
	b.refs.Store(1)
	return b
}

// put drops one reference.
func (p *pool) put(b *block) {
	if b.refs.Add(-1) != 0 {
		return
	}
	poison(b.buf)
	switch len(b.buf) {
	case blockTiny:
		p.tiny.Put(b)
	case blockSmall:
		p.small.Put(b)
	case blockRecord:
		p.record.Put(b)
	case blockLarge:
		p.large.Put(b)
	}
}

// copyPieces is copy, in steps: the collector and the scheduler cannot get into one copy, and all goroutines wait for it. dst and
// src may overlap if dst begins first.
func copyPieces(dst, src []byte) {
	for len(src) > 0 {
		n := copy(dst, src[:min(len(src), holdMax)])
		dst, src = dst[n:], src[n:]
	}
}
