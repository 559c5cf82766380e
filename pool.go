package tcpio

import (
	"sync"
	"sync/atomic"
)

// Blocks of two sizes hold what is queued for output, partial frames and drained input; idle connections hold none.
const (
	blockSmall = 4 << 10
	blockLarge = 64 << 10
)

// A block is a reference-counted buffer. The last reference gives it back to its pool.
type block struct {
	refs atomic.Int32
	buf  []byte
}

// pool hands out blocks; the zero value works. Blocks of other than the two sizes are left to the collector.
type pool struct {
	small, large sync.Pool
}

// get returns a block of at least size bytes, with one reference.
func (p *pool) get(size int) *block {
	var b *block
	switch {
	case size <= blockSmall:
		if b, _ = p.small.Get().(*block); b == nil {
			b = &block{buf: make([]byte, blockSmall)}
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
	case blockSmall:
		p.small.Put(b)
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
