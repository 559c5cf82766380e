package tcpio

import "sync"

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

// all copies the connections of the moment.
func (t *table) all() []*Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	conns := make([]*Conn, 0, len(t.conns)-len(t.free))
	for _, c := range t.conns {
		if c != nil {
			conns = append(conns, c)
		}
	}
	return conns
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
