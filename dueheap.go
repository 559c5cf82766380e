package tcpio

// A dueItem is something that is due at a time and knows its place in the heap that it is in.
type dueItem interface {
	comparable
	dueAt() int64
	setPlace(i int) // the place in the heap plus one; 0 when it is in none
}

// A dueHeap is ordered by due time, the earliest first. It is four-ary: shallower than a binary heap, and the children
// of a node lie side by side. Whoever has it guards it.
type dueHeap[T dueItem] []T

func (h *dueHeap[T]) push(item T) {
	*h = append(*h, item)
	item.setPlace(len(*h))
	h.up(len(*h) - 1)
}

// remove takes out what is at i. An empty heap gives its memory back.
func (h *dueHeap[T]) remove(i int) {
	last := len(*h) - 1
	h.swap(i, last)
	(*h)[last].setPlace(0)
	var none T
	(*h)[last] = none
	*h = (*h)[:last]
	if last == 0 {
		*h = nil
	}
	if i < last {
		h.fix(i)
	}
}

// fix restores the order after what is at i has changed.
func (h *dueHeap[T]) fix(i int) {
	h.down(i)
	h.up(i)
}

// first is when the earliest is due, 0 without any.
func (h dueHeap[T]) first() int64 {
	if len(h) == 0 {
		return 0
	}
	return h[0].dueAt()
}

func (h dueHeap[T]) up(i int) {
	for i > 0 {
		parent := (i - 1) / 4
		if h[parent].dueAt() <= h[i].dueAt() {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h dueHeap[T]) down(i int) {
	for {
		least := i
		for child := 4*i + 1; child <= 4*i+4 && child < len(h); child++ {
			if h[child].dueAt() < h[least].dueAt() {
				least = child
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}

func (h dueHeap[T]) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].setPlace(i + 1)
	h[j].setPlace(j + 1)
}
