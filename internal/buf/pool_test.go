package buf

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestPoolGivesBlocksOfAtLeastTheSizeAskedFor(t *testing.T) {
	var p Pool
	for _, tt := range []struct{ size, want int }{
		{0, Small}, {1, Small}, {Tiny - 1, Small}, {Tiny, Tiny}, {Tiny + 1, Small}, {Small, Small},
		{Small + 1, Large}, {Record - 1, Large}, {Record, Record}, {Record + 1, Large}, {Large, Large},
		{Large + 1, Large + 1}, {3 * Large, 3 * Large},
	} {
		for range 3 {
			b := p.Get(tt.size)
			if len(b.Buf) != tt.want || b.Shared() {
				t.Errorf("Get(%d) has %d bytes, want %d; shared: %v", tt.size, len(b.Buf), tt.want, b.Shared())
			}
			p.Put(b)
		}
	}
}

// Goroutines write to blocks of their own, and pass some on. A block that is in use is never handed
// out a second time.
func TestPoolHandsOutABlockOnceAtATime(t *testing.T) {
	var p Pool
	var users sync.WaitGroup
	sizes := []int{1, Tiny, Small, Record, Large}
	for id := range byte(8) {
		users.Go(func() {
			for range 500 {
				b := p.Get(sizes[rand.IntN(len(sizes))])
				for i := 0; i < len(b.Buf); i += 100 {
					b.Buf[i] = id
				}
				b.Retain()
				if !b.Shared() {
					t.Error("two references, and it is not shared")
				}
				p.Put(b)
				for i := 0; i < len(b.Buf); i += 100 {
					if b.Buf[i] != id {
						t.Errorf("byte %d is %d, want %d", i, b.Buf[i], id)
						return
					}
				}
				p.Put(b)
			}
		})
	}
	users.Wait()
}

func TestCopyMovesBytesToTheFrontOfTheSameBuffer(t *testing.T) {
	for _, size := range []int{0, 1, copyMax - 1, copyMax, copyMax + 1, 3*copyMax + 5} {
		for _, off := range []int{0, 1, 1000, copyMax + 1} {
			p := make([]byte, off+size)
			for i := range p {
				p[i] = byte(i) ^ byte(i>>8)*31 ^ byte(i>>16)*17
			}
			want := bytes.Clone(p[off:])
			Copy(p, p[off:])
			if !bytes.Equal(p[:size], want) {
				t.Errorf("%d bytes from offset %d are not what they were", size, off)
			}
		}
	}
}
