package tcpio

import (
	"iter"
	"sync"
)

// table is a loop's connections, found by slot and generation.
type table struct {
	mu sync.Mutex
	// Guarded by mu.
	conns []*Conn
	free  []uint32
	gen   uint32
}

// add gives c its slot and generation.
func (t *table) add(c *Conn) token {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gen++; t.gen == 0 {
		t.gen = 1 // zero is for what is not a connection
	}
	c.gen = t.gen
	if n := len(t.free); n > 0 {
		c.slot = t.free[n-1]
		t.free = t.free[:n-1]
		t.conns[c.slot] = c
	} else {
		c.slot = uint32(len(t.conns))
		t.conns = append(t.conns, c)
	}
	return token{c.slot, c.gen}
}

func (t *table) remove(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns[c.slot] = nil
	t.free = append(t.free, c.slot)
}

// resolve finds the connections of events. What has no connection any more, or never had one, gets nil.
func (t *table) resolve(events []readyEvent, batch []*Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range events {
		k := events[i].token()
		batch[i] = nil
		if k.gen != 0 && k.slot < uint32(len(t.conns)) {
			if c := t.conns[k.slot]; c != nil && c.gen == k.gen {
				batch[i] = c
			}
		}
	}
}

// tablePiece is how many slots are looked at while the lock is held: the loop takes it for every batch.
const tablePiece = 1024

// all iterates over the connections, those that are refused too. A connection keeps its slot for life, so that one which
// is there all the while is yielded exactly once. No lock is held while the body runs.
func (t *table) all() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		var piece []*Conn
		for slot := 0; slot >= 0; {
			slot, piece = t.piece(slot, piece[:0])
			for _, c := range piece {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// piece appends the connections of the next slots, and says where to go on; negative behind the last one.
func (t *table) piece(from int, conns []*Conn) (next int, _ []*Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next = min(from+tablePiece, len(t.conns))
	for _, c := range t.conns[min(from, next):next] {
		if c != nil {
			conns = append(conns, c)
		}
	}
	if next == len(t.conns) {
		next = -1
	}
	return next, conns
}

// workQueue is the connections that want a turn of their loop.
type workQueue struct {
	mu sync.Mutex
	// Guarded by mu.
	conns []*Conn
	head  int
}

func (q *workQueue) push(c *Conn) {
	q.mu.Lock()
	if q.head > 0 && len(q.conns) == cap(q.conns) && q.head >= len(q.conns)/2 {
		// A queue that is never empty would grow for ever over the places it has left.
		n := copy(q.conns, q.conns[q.head:])
		clear(q.conns[n:])
		q.conns, q.head = q.conns[:n], 0
	}
	q.conns = append(q.conns, c)
	q.mu.Unlock()
}

func (q *workQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.conns) - q.head
}

func (q *workQueue) pop() *Conn {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.head == len(q.conns) {
		return nil
	}
	c := q.conns[q.head]
	q.conns[q.head] = nil
	if q.head++; q.head == len(q.conns) {
		q.conns, q.head = q.conns[:0], 0
	}
	return c
}
