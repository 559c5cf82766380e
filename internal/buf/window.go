package buf

// A Window is input that was received and not yet taken, in one block. Its owner guards it with a
// lock. The zero value is empty and holds no block.
type Window struct {
	b        *Block
	off, end int // b.Buf[off:end] is unread
}

// Len returns the number of unread bytes.
func (w *Window) Len() int { return w.end - w.off }

// Held reports whether w holds a block.
func (w *Window) Held() bool { return w.b != nil }

// Size returns the size of the block in bytes, 0 without one.
func (w *Window) Size() int {
	if w.b == nil {
		return 0
	}
	return len(w.b.Buf)
}

// Bytes returns the unread bytes, which stay where they are until the next call that changes the
// block. Appending to them copies them.
func (w *Window) Bytes() []byte {
	if w.b == nil {
		return nil
	}
	return w.b.Buf[w.off:w.end:w.end]
}

// Room returns the part of the block behind the unread bytes, which Filled makes unread.
func (w *Window) Room() []byte { return w.b.Buf[w.end:] }

// Filled adds the first n bytes of Room.
func (w *Window) Filled(n int) { w.end += n }

// Skip takes n bytes, or as many as there are.
func (w *Window) Skip(n int) { w.off = min(w.off+n, w.end) }

// Full reports whether there is no room, with a block or without one.
func (w *Window) Full() bool { return w.b == nil || w.end == len(w.b.Buf) }

// Drop gives the block back, and the unread bytes up.
func (w *Window) Drop(pool *Pool) {
	if w.b != nil {
		pool.Put(w.b)
		*w = Window{}
	}
}

// Widened returns a window of the same unread bytes with room behind them, in place of w, which is
// full: at the front of the same block if that makes half of it free, else in a block twice as
// large or, where limit is less, of limit bytes and one, so that a frame that is longer than limit
// is seen. It takes as long as the bytes are many, and changes nothing but the block.
func (w Window) Widened(pool *Pool, limit int) Window {
	if w.b == nil {
		return Window{b: pool.Get(Large)}
	}
	b, unread := w.b, w.Bytes()
	if len(unread) > len(w.b.Buf)/2 {
		size := limit + 1
		if len(w.b.Buf) <= limit/2 {
			size = 2 * len(w.b.Buf)
		}
		b = pool.Get(max(size, len(unread)+1))
	}
	Copy(b.Buf, unread)
	if b != w.b {
		pool.Put(w.b)
	}
	return Window{b, 0, len(unread)}
}

// WidenSome makes room without moving more than Large bytes. It returns false where that cannot be.
func (w *Window) WidenSome(pool *Pool) bool {
	switch {
	case w.b == nil:
		w.b = pool.Get(Small)
	case !w.Full():
	case w.Len() >= Large:
		return false
	case w.off > 0:
		w.end, w.off = copy(w.b.Buf, w.Bytes()), 0
	default:
		w.move(pool, Large)
	}
	return true
}

// Shrink keeps few unread bytes in a small block: the connection may be idle for long.
func (w *Window) Shrink(pool *Pool) {
	if w.Size() > Small && w.Len() <= Small {
		w.move(pool, Small)
	}
}

// move puts the unread bytes into a block of size bytes.
func (w *Window) move(pool *Pool, size int) {
	b := pool.Get(size)
	n := copy(b.Buf, w.Bytes())
	pool.Put(w.b)
	*w = Window{b, 0, n}
}
