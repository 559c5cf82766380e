package buf

import "github.com/rabbit-backend/tcpio/internal/sys"

// A Queue is output that waits for room in a socket, in blocks. Its owner guards it with a lock. A
// nil queue is empty.
type Queue struct {
	segs []segment // non-empty each
	size int       // bytes
}

// A segment is b.Buf[off:end]. Shared blocks are never written to.
type segment struct {
	b        *Block
	off, end int
}

// Len returns the number of bytes.
func (q *Queue) Len() int {
	if q == nil {
		return 0
	}
	return q.size
}

// Append copies p to the end of the queue. A large block is taken when it is going to be half full
// at least: a peer that never reads costs what is queued for it, and not the size of blocks.
func (q *Queue) Append(pool *Pool, p []byte) {
	q.size += len(p)
	if n := len(q.segs); n > 0 {
		if last := &q.segs[n-1]; !last.b.Shared() {
			n := copy(last.b.Buf[last.end:], p)
			last.end += n
			p = p[n:]
		}
	}
	for len(p) > 0 {
		size := Small
		if len(p) > Large/2 {
			size = Large
		}
		b := pool.Get(size)
		n := copy(b.Buf, p)
		q.segs = append(q.segs, segment{b, 0, n})
		p = p[n:]
	}
}

// Share appends b.Buf[off:end], at least one byte, without copying. The queue takes over one
// reference.
func (q *Queue) Share(b *Block, off, end int) {
	q.size += end - off
	q.segs = append(q.segs, segment{b, off, end})
}

// Fill adds the front of the queue to v, at most limit bytes.
func (q *Queue) Fill(v *sys.Vec, limit int) {
	for _, s := range q.segs {
		n := min(s.end-s.off, limit)
		if n == 0 || !v.Add(s.b.Buf[s.off:s.off+n]) {
			return
		}
		limit -= n
	}
}

// Consume drops the first n bytes.
func (q *Queue) Consume(pool *Pool, n int) {
	q.size -= n
	for n > 0 {
		s := &q.segs[0]
		left := s.end - s.off
		if n < left {
			s.off += n
			return
		}
		n -= left
		pool.Put(s.b)
		*s = segment{}
		q.segs = q.segs[1:]
	}
}

// Drop gives all blocks back.
func (q *Queue) Drop(pool *Pool) {
	for _, s := range q.segs {
		pool.Put(s.b)
	}
	*q = Queue{}
}

// Blocks yields the blocks, for tests of what a queue holds.
func (q *Queue) Blocks(yield func(*Block) bool) {
	for _, s := range q.segs {
		if !yield(s.b) {
			return
		}
	}
}
