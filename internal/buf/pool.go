// Package buf has the memory for bytes on their way: pooled blocks, the output that waits for a
// socket, and the input that waits for its reader.
package buf

import (
	"sync"
	"sync/atomic"
)

// Blocks of four sizes, in bytes, are pooled.
const (
	Tiny   = 512
	Small  = 4 << 10
	Record = 5 + 16<<10 + 2048 // the longest TLS record, with its header; RFC 5246, 6.2.3
	Large  = 64 << 10
)

// A Block is a reference-counted buffer. The last reference gives it back to its pool.
type Block struct {
	Buf  []byte // the length does not change
	refs atomic.Int32
}

// NewBlock returns a block of exactly size bytes, with one reference. The collector frees it,
// unless size is one of the pooled ones.
func NewBlock(size int) *Block {
	b := &Block{Buf: make([]byte, size)}
	b.refs.Store(1)
	return b
}

// Retain adds one reference.
func (b *Block) Retain() { b.refs.Add(1) }

// Shared reports whether there are other references than the caller's. A shared block must not be
// written to.
func (b *Block) Shared() bool { return b.refs.Load() != 1 }

// A Pool hands out blocks; the zero value works. Blocks of other sizes are left to the collector.
type Pool struct {
	tiny, small, record, large sync.Pool
}

// Get returns a block of at least size bytes, with one reference. Blocks of Tiny and Record bytes
// are handed out only if size is exactly that.
func (p *Pool) Get(size int) *Block {
	var from *sync.Pool
	switch {
	case size == Tiny:
		from = &p.tiny
	case size <= Small:
		from, size = &p.small, Small
	case size == Record:
		from = &p.record
	case size <= Large:
		from, size = &p.large, Large
	default:
		return NewBlock(size)
	}
	b, _ := from.Get().(*Block)
	if b == nil {
		return NewBlock(size)
	}
	b.refs.Store(1)
	return b
}

// Put drops one reference.
func (p *Pool) Put(b *Block) {
	if b.refs.Add(-1) != 0 {
		return
	}
	poison(b.Buf)
	switch len(b.Buf) {
	case Tiny:
		p.tiny.Put(b)
	case Small:
		p.small.Put(b)
	case Record:
		p.record.Put(b)
	case Large:
		p.large.Put(b)
	}
}

// copyMax is how many bytes are copied at once: the collector and the scheduler cannot interrupt a
// copy, and a collection makes all goroutines wait for it.
const copyMax = 256 << 10

// Copy is the built-in copy, in steps of copyMax. If dst and src overlap, dst must begin first. dst
// must not be shorter.
func Copy(dst, src []byte) {
	for len(src) > 0 {
		n := copy(dst, src[:min(len(src), copyMax)])
		dst, src = dst[n:], src[n:]
	}
}
