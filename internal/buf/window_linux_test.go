package buf

import (
	"bytes"
	"testing"
)

func TestWindowIsAByteQueue(t *testing.T) { runModel(t, windowModel) }
func FuzzWindow(f *testing.F)             { fuzzModel(f, windowModel) }

// windowModel compares a Window with a byte slice. An operation is what to do, and a size.
func windowModel(t *testing.T, ops []byte) {
	const limit = 2*Large + 5
	var pool Pool
	var w Window
	var want []byte
	off := 0
	for _, op := range ops {
		size := sizes[int(op>>3)%len(sizes)]
		switch op % 8 {
		case 0, 1, 2, 3:
			if w.Full() {
				if op%8 == 3 {
					if had := w.Len(); !w.WidenSome(&pool) {
						if had < Large {
							t.Fatalf("no room for more than %d bytes", had)
						}
						continue
					}
				} else if w.Len() <= limit {
					w = w.Widened(&pool, limit)
				} else {
					continue
				}
			}
			room := w.Room()
			if len(room) == 0 {
				t.Fatal("no room was made")
			}
			n := copy(room, numbered(off, min(size, len(room))))
			w.Filled(n)
			want = append(want, numbered(off, n)...)
			off += n
		case 4, 5:
			w.Skip(size)
			want = want[min(size, len(want)):]
		case 6:
			w.Shrink(&pool)
			if w.Len() <= Small && w.Size() > Small {
				t.Fatalf("%d bytes held for %d", w.Size(), w.Len())
			}
		case 7:
			if op>>3 == 0 {
				w.Drop(&pool)
				want = nil
			}
		}
		if w.Len() != len(want) || !bytes.Equal(w.Bytes(), want) {
			t.Fatalf("%d bytes are not the %d that were put in", w.Len(), len(want))
		}
		if cap(w.Bytes()) != len(want) || w.Held() != (w.Size() > 0) {
			t.Fatal("Bytes can be appended to in place, or Held and Size differ")
		}
		if w.Size() > 2*limit {
			t.Fatalf("a block of %d bytes", w.Size())
		}
	}
	w.Drop(&pool)
	if w != (Window{}) {
		t.Fatal("something is held after Drop")
	}
}
